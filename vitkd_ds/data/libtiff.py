"""Collect libtiff's messages for error texts.

Otherwise it prints them to stderr, about a file "tempfile.tif".
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from PIL import _imaging

MESSAGE_BYTES = 500
"""Maximum length of a message; longer ones are truncated."""
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
"""libtiff's TIFFErrorHandler: the name of a file or function, a format string and its arguments (va_list)."""
_thread = threading.local()


@contextmanager
def messages() -> Iterator[list[str]]:
    """Collect the errors that libtiff reports in this thread, including errors that Pillow ignores.

    Warnings are dropped. The list stays empty if Pillow was built without libtiff, or with hidden libtiff symbols.
    """
    _listen()
    _thread.messages = found = []
    try:
        yield found
    finally:
        _thread.messages = []


@cache
def _listen() -> ctypes._CFuncPtr | None:
    """Install the handlers once; return the error handler, which must stay referenced while libtiff may call it."""
    pillow = ctypes.CDLL(_imaging.__file__)  # includes the symbols of linked libraries
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
