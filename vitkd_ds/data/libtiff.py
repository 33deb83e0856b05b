"""Collect the error messages of libtiff.

By default, libtiff prints these messages to stderr, where they refer to a file "tempfile.tif".
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from PIL import _imaging

MESSAGE_BYTES = 500
"""Maximum length of a message in bytes; longer messages are truncated."""
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
"""Type of libtiff's error handlers. They receive a file's or function's name, a format string and a va_list."""
_thread = threading.local()


@contextmanager
def messages() -> Iterator[list[str]]:
    """Yield a list that collects the text of each error that libtiff reports in this thread.

    The list includes errors that Pillow ignores, but no warnings. It stays empty if Pillow was built without libtiff or
    hides libtiff's symbols.
    """
    _listen()
    _thread.messages = found = []
    try:
        yield found
    finally:
        _thread.messages = []


@cache
def _listen() -> ctypes._CFuncPtr | None:
    """Install the handlers at the first call; return the error handler, or None if libtiff is not accessible.

    The cache keeps a reference to the error handler, because libtiff may call it at any time.
    """
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
