"""libtiff's messages, collected for our errors; else it prints them to stderr under the name "tempfile.tif"."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from PIL import _imaging

MESSAGE_BYTES = 500
"""Longest message that is kept; the rest is cut off."""
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
"""libtiff's TIFFErrorHandler: the name of a file or function, a format and its arguments (va_list)."""
_thread = threading.local()


@contextmanager
def messages() -> Iterator[list[str]]:
    """Collect the errors that libtiff reports in this thread, also those of which Pillow takes no notice. Its warnings
    are dropped. Where Pillow was built without libtiff, or with one that hides its functions, there are none."""
    _listen()
    _thread.messages = found = []
    try:
        yield found
    finally:
        _thread.messages = []


@cache
def _listen() -> ctypes._CFuncPtr | None:
    """Set libtiff's handlers once; returns ours, which must not be collected while libtiff may call it."""
    pillow = ctypes.CDLL(_imaging.__file__)  # its symbols include those of the libraries that it is linked with
    if not hasattr(pillow, "TIFFSetErrorHandler"):
        return None
    write = ctypes.CDLL(None).vsnprintf
    write.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]

    def keep(name: bytes, text: bytes, arguments: int) -> None:
        message = ctypes.create_string_buffer(MESSAGE_BYTES)
        write(message, MESSAGE_BYTES, text, arguments)
        getattr(_thread, "messages", []).append(message.value.decode(errors="replace").rstrip("."))

    handler = HANDLER(keep)
    for function in (pillow.TIFFSetErrorHandler, pillow.TIFFSetWarningHandler):
        function.argtypes = [ctypes.c_void_p]
        function.restype = ctypes.c_void_p
    pillow.TIFFSetErrorHandler(ctypes.cast(handler, ctypes.c_void_p))
    pillow.TIFFSetWarningHandler(None)
    return handler
