"""The command's entry: which part runs, and how every error becomes one sentence and an exit code.

0 a clean stop, also by Ctrl-C or SIGTERM; 1 an error, or the doctor finds something missing; 2 a wrong command line;
130 aborted by a second Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys

from afxdp_pool.cli import arguments
from afxdp_pool.cli.output import sentence
from afxdp_pool.errors import AfXdpError

_ABORTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv`, by default the process's. Returns the exit code.

    With ``AFXDP_POOL_DEBUG=1`` in the environment errors come with their traceback.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us (>&-)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lasts
    args = arguments.parse(argv)
    try:
        code = _command(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("afxdp-pool: aborted", file=sys.stderr)
        return _ABORTED
    except BrokenPipeError:
        # Who read our output has gone. What ran was stopped and closed; the interpreter must not flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.command == "handle" and (told := _of_the_user(error)):
            print(told, end="", file=sys.stderr)
            return _failed(RuntimeError(f"the handler raised {type(error).__name__}"), args.interface)
        if isinstance(error, (AfXdpError, OSError)):
            return _failed(error, args.interface or "")
        return _failed(RuntimeError(f"unexpected {type(error).__name__}: {error}"), args.interface or "", error)


def _command(args: argparse.Namespace) -> int:
    # Each with its imports only when it is called for.
    if args.command == "doctor":
        from afxdp_pool.cli.doctor import run
    elif args.command == "top":
        from afxdp_pool.cli.top import run
    elif args.command == "serve":
        from afxdp_pool.cli.serving import run
    elif args.command == "steer":
        from afxdp_pool.cli.steer import run
    elif args.command == "clean":
        from afxdp_pool.cli.cleaning import run
    else:
        from afxdp_pool.cli.paths import run
    return run(args)


def _of_the_user(error: Exception) -> str | None:
    from afxdp_pool.cli.loading import of_the_user

    return of_the_user(error)


def _failed(error: Exception, interface: str, cause: Exception | None = None) -> int:
    if os.environ.get("AFXDP_POOL_DEBUG") == "1":
        raise cause or error
    more = "; set AFXDP_POOL_DEBUG=1 to see where, and please report it" if cause else ""
    print(f"afxdp-pool: {sentence(error, interface)}{more}", file=sys.stderr)
    return 1
