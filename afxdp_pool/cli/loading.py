"""The handler that `afxdp-pool handle` was given by name, and what is said when it is not there or fails.

``file.py:function``, ``module:function`` or ``library.so:function``; without ``:function`` it is ``handle``. A file's
folder, or else the one the command was called in, is searched for what it imports. Invariant: whatever is wrong with
the user's code is said with the user's line.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import afxdp_pool as ap
from afxdp_pool.errors import ConfigError
from afxdp_pool.handlers import check_handler
from afxdp_pool.libraries import how_to_compile
from afxdp_pool.signatures import Per

_PACKAGE = str(Path(ap.__file__).parent)
_LIBRARY = re.compile(r"\.so(\.[\d.]+)?$")


def load(text: str, per: Per | None) -> Any:
    """The handler of that name.

    Args:
        per: ``"packet"``: a Python function is called with one packet. Of machine code see `compiled`.

    Raises:
        ConfigError: no such file, module or function; it is no handler; importing it failed.
    """
    place, colon, name = text.rpartition(":")
    if not colon:
        place, name = text, "handle"
    if not place or not name:
        raise ConfigError(
            f"{text!r} is no handler", hint="write file.py:function, module:function or library.so:function"
        )
    if _LIBRARY.search(place):
        return ap.from_library(place, name, per=per)
    module = _import(place)
    found = _look_up(module, name, place)
    if isinstance(found, ap.Compiled):
        if per not in (None, found.per):
            raise ConfigError(f"it is called once a {found.per}", subject=text, hint="leave out --per")
        return found
    if not callable(found):
        raise ConfigError(f"it is a {type(found).__name__}, not a function", subject=text)
    check_handler(found)
    return ap.per_packet(found) if per == "packet" else found


def _import(place: str) -> ModuleType:
    file = Path(place)
    is_file = file.suffix == ".py"
    if file.is_file() and not is_file:
        hint = how_to_compile(file) if file.suffix == ".c" else "write file.py:function or library.so:function"
        raise ConfigError("it is neither a Python file nor a shared library", subject=place, hint=hint)
    if is_file and not file.is_file():
        raise ConfigError("there is no such file", subject=place, hint="write file.py:function")
    sys.path.insert(0, str(file.resolve().parent if is_file else Path.cwd()))
    try:
        if not is_file:
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(spec.name, module)
        spec.loader.exec_module(module)
        return module
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and not is_file and f"{place}.".startswith(f"{error.name}."):
            hint = f"a file is named with its ending: {place}.py" if Path(f"{place}.py").exists() else ""
            raise ConfigError(
                f"there is no module {error.name}",
                subject=place,
                hint=hint or "it is looked for in this folder and where Python has its packages",
            ) from None
        line = _last_line(error)
        raise ConfigError(
            f"importing it failed: {type(error).__name__}: {error}{f' ({line})' if line else ''}", subject=place
        ) from error


def _last_line(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return ""  # it says so itself
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def _look_up(module: ModuleType, name: str, place: str) -> Any:
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [own for own, value in vars(module).items() if callable(value) and own[:1] != "_"]
            alike = difflib.get_close_matches(name, names, 1)
            raise ConfigError(
                f"it has no {name}",
                subject=place,
                hint=f"did you mean {place}:{alike[0]}?" if alike else "name a function of it: file.py:function",
            ) from None
    return found


def of_the_user(error: BaseException) -> str | None:
    """The traceback of an error that came out of the handler, from the user's first line on; None: of another."""
    frames = traceback.extract_tb(error.__traceback__)
    asked = [at for at, frame in enumerate(frames) if frame.name == "one_slice" and frame.filename.startswith(_PACKAGE)]
    if not asked:
        return None
    begin = next((at for at in range(asked[-1], len(frames)) if not frames[at].filename.startswith(_PACKAGE)), None)
    if begin is None:
        return None
    lines = ["Traceback of the handler (most recent call last):\n", *traceback.format_list(frames[begin:])]
    return "".join([*lines, *traceback.format_exception_only(error)])
