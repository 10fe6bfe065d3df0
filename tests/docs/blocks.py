"""The code blocks of a page, run as its reader would run them.

A page is read by the parser that makes the book of it, so a block here is a block there. What becomes of one:

* ``python`` runs in the page's namespace, one block after the other. What it prints is compared with the ``output``
  block right behind it, if there is one.
* ``console``: each line behind a prompt (``$`` or ``#``) is given to a shell, one for the page; the lines below it are
  its output. ``afxdp-pool`` is the one under test, and ends after a second where the reader's would go on.
* ``c`` is compiled; ``json``, ``toml``, ``yaml`` and ``ini`` are parsed. ``text``, ``markdown`` and
  ``output`` are no code.

In an output ``...`` stands for what differs between runs. Durations of 10 seconds and more are cut to
one, and to 12 where something else runs beside it.

A page that speaks of ``eth1`` and ``eth2`` gets them: two links with four queues in a namespace of their own, with 2000
test packets a second (UDP, four flows) arriving at queue 0 of eth1, and something behind eth2 that takes what is sent.
Every frame is accounted for before a Umem closes, whether the page says so or not.

Comments before a block, not seen in the book, say what else is to be done with it:

* ``<!-- python ... -->`` is a block of its own, hidden: set-up before, or a check after.
* ``<!-- file: NAME -->``: it is not run but saved, for a command that follows.
* ``<!-- terminal: NAME -->``: its last command runs in another shell, beside what follows; its output is compared when
  that shell is used again, or the section is over.
* ``<!-- fails -->``: the last command is meant to fail.
* ``<!-- not run: REASON -->``: it cannot be run here. Its ``afxdp-pool`` commands are parsed all the same.
"""

from __future__ import annotations

import configparser
import contextlib
import io
import json
import os
import re
import select
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from afxdp_pool import Umem, include_dir
from afxdp_pool.cli import arguments
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import Lab, Sink, Source

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 60.0  # seconds for one command
BESIDE = 12  # seconds for what runs in another terminal
RATE = 2000
_COMMENT = re.compile(r"<!--\s*(python|file|fails|terminal|not run)\b:?(.*?)-->", re.DOTALL)
_LOOPS = re.compile(r"\bafxdp-pool (drop|forward|handle|reflect|tx)\b")
_NO_CODE = ("", "text", "output", "markdown")


@dataclass
class Block:
    """One block: where its text begins, under which heading, its language, what the comments before it say."""

    page: Path
    line: int
    section: int
    language: str
    text: str
    notes: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def code(self) -> bool:
        return self.language not in _NO_CODE and not self.language.startswith("{")

    @property
    def needs_lab(self) -> bool:
        if "not run" in self.notes or "file" in self.notes:
            return False
        return self.language == "console" or (self.language == "python" and bool(re.search(r"\beth[12]\b", self.text)))


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, hidden ones and those in lists and quotations included, in order."""
    found: list[Block] = []
    notes: dict[str, str] = {}
    section = 0
    for token in MarkdownIt("commonmark").parse(page.read_text()):
        line = token.map[0] + 1 if token.map else 0
        section += token.type == "heading_open"
        if token.type == "html_block":
            for note in _COMMENT.finditer(token.content):
                if note[1] == "python":
                    at = line + token.content[: note.start(2)].count("\n")
                    found.append(Block(page, at, section, "python", note[2], notes))
                    notes = {}
                else:
                    notes[note[1]] = note[2].strip()
        elif token.type == "fence":
            found.append(Block(page, line + 1, section, token.info.split(" ")[0], token.content, notes))
            notes = {}
        elif token.type == "code_block":
            found.append(Block(page, line, section, "an indentation", token.content))
    assert not notes, f"{page}: a comment at the end is of no block: {notes}"
    return found


class Shell:
    """A root shell in this thread's network namespace, with mounts of its own: named namespaces end with it.

    A further one shares the mounts of the `first`.
    """

    def __init__(self, folder: Path, first: Shell | None = None) -> None:
        bin_path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = ["unshare", "--mount"] if first is None else ["nsenter", f"--mount=/proc/{first.process.pid}/ns/mnt"]
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            [*own, "bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | {"PATH": bin_path, "COLUMNS": "100", "PYTHONUNBUFFERED": "1", "TERM": "dumb"},
            process_group=0,
        )
        self.pending: tuple[Block, str] | None = None
        self.end = ""
        if first is None:
            self.run("mount -t sysfs sysfs /sys; mount -t bpf bpf /sys/fs/bpf; mkdir -p /run/netns")
            self.run("mount -t tmpfs tmpfs /run/netns")
        self.run(f'cd {shlex.quote(str(folder))}; sudo() {{ "$@"; }}; set -o pipefail')

    def start(self, command: str) -> None:
        """Let it run."""
        assert self.process.stdin is not None
        self.end = f"--{time.monotonic_ns()}--"
        self.process.stdin.write(f"{command}\nprintf '\\n%s%s\\n' '{self.end}' $?\n".encode())
        self.process.stdin.flush()

    def finish(self) -> tuple[int, str]:
        """The exit code of what was started, and all it wrote."""
        assert self.process.stdout is not None
        text, deadline = b"", time.monotonic() + WITHIN
        while not (over := re.search(rb"\n?" + self.end.encode() + rb"(\d+)\n", text)):
            left = deadline - time.monotonic()
            assert left > 0, f"still running after {WITHIN:.0f} s; so far:\n{text.decode(errors='replace')}"
            if select.select([self.process.stdout], [], [], left)[0]:
                got = os.read(self.process.stdout.fileno(), 1 << 16)
                assert got, "the shell ended"
                text += got
        return int(over[1]), text[: over.start()].decode(errors="replace")

    def wait_until_it_receives(self) -> None:
        """Until what was started has attached its XDP program: what follows may send to it at once."""
        deadline = time.monotonic() + WITHIN
        while not self.attached():
            assert time.monotonic() < deadline, "no command of that terminal has attached an XDP program"
            time.sleep(0.02)

    def attached(self) -> bool:
        """Whether a child of this shell holds a link of an XDP program, other than the resident ones' on a loopback."""
        link = re.compile(r"link_type:\s*xdp\n(?:.*\n)*ifindex:\s*(?!1\n)\d+")
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if any(link.search(fd.read_text()) for fd in Path(f"/proc/{child}/fdinfo").iterdir()):
                    return True
        return False

    def run(self, command: str) -> tuple[int, str]:
        """Its exit code and all it wrote."""
        self.start(command)
        return self.finish()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.communicate()


def bounded(command: str, seconds: int = 1) -> str:
    """The command, with an end where it has none, and a near one where it is far."""
    command = re.sub(r"--duration \d\d+", f"--duration {seconds}", command)
    if _LOOPS.search(command) and not re.search(r"--duration|--count|--help", command):
        command = re.sub(r"\bafxdp-pool \w+", rf"\g<0> --duration {seconds}", command, count=1)
    return command


def shortened(source: str, seconds: int) -> str:
    """Python with short durations."""
    return re.sub(r"\bduration=\d\d+", f"duration={seconds}", source)


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output below it."""
    found: list[tuple[str, str]] = []
    more = False
    for line in text.splitlines():
        if prompt := re.match(r"[$#] (.*)", line):
            found.append((prompt[1], ""))
        elif more or line.startswith("> "):
            found[-1] = (f"{found[-1][0]}\n{line.removeprefix('> ')}", "")
            line = found[-1][0]
        else:
            assert found, f"a console block begins with a prompt, not with {line!r}"
            found[-1] = (found[-1][0], found[-1][1] + line + "\n")
            continue
        more = line.endswith("\\")
    return found


def parse_only(block: Block) -> None:
    """Let the real parser read what is not run."""
    for command, _ in commands(block.text) if block.language == "console" else []:
        for part in re.split(r"&&|\||;|\n(?!\s)", command.replace("\\\n", " ")):
            words = shlex.split(part, comments=True)
            if any(word.endswith("afxdp-pool") for word in words):
                at = next(i for i, word in enumerate(words) if word.endswith("afxdp-pool"))
                arguments.parse([word for word in words[at + 1 :] if word != "&"])


def compare(block: Block, wanted: str, got: str) -> None:
    """``...`` stands for any text, in a line of its own for any lines or none; white space is not looked at closely."""
    pattern = ""
    for line in wanted.strip().splitlines():
        words = r"[^\S\n]+".join(re.escape(word).replace(r"\.\.\.", ".*") for word in line.split())
        pattern += r"(?:.*\n)*" if line.strip() == "..." else rf"[^\S\n]*{words}[^\S\n]*\n"
    if not re.fullmatch(pattern, got.strip() + "\n"):
        raise AssertionError(f"{block}: the page says\n{wanted}\nand it was\n{got}")


@dataclass
class Page:
    """A page under test: its namespace, folder, shell and links, made when first needed."""

    path: Path
    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "page"})
    printed: str = ""
    section: int = 0
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    shells: dict[str, Shell] = field(default_factory=dict)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo.close()

    def finish(self) -> None:
        """Look at what still runs in other terminals."""
        for shell in self.shells.values():
            self.settle(shell)
        for made in self.names.values():
            if isinstance(made, Umem) and made._open:
                made.audit().check()

    def enter_lab(self) -> None:
        """eth1 and eth2, and traffic; this thread stays in their namespace until the page is done."""
        lab = self.undo.enter_context(Lab())
        links = [lab.veth(name, queues=4) for name in ("one", "two")]
        with in_netns(lab.engine_netns):
            for number, pair in enumerate(links, 1):
                subprocess.run(["ip", "link", "set", pair.near.name, "name", f"eth{number}"], check=True)
        self.undo.enter_context(in_netns(lab.engine_netns))
        sinks = [self.undo.enter_context(Sink(pair.far)) for pair in links]
        source = self.undo.enter_context(Source(links[0].far, flows=4, cpu=0))
        source.start(rate=RATE)
        self.undo.callback(source.stop)
        self.names |= {"lab": lab, "far1": sinks[0], "far2": sinks[1]}

    def run(self, block: Block) -> None:
        if block.section != self.section:
            self.finish()
            self.section = block.section
        if "not run" in block.notes:
            assert len(block.notes["not run"]) > 10, f"{block}: say why it is not run"
            parse_only(block)
        elif "file" in block.notes:
            (self.folder / block.notes["file"]).write_text(shortened(block.text, BESIDE))
        elif block.language == "output":
            compare(block, block.text, self.printed)
        elif block.language == "python":
            self.run_python(block)
        elif block.language == "console":
            self.run_console(block)
        elif block.language == "c":
            source = f"#include <stdint.h>\n#line {block.line}\n{block.text}"
            compiler = ["gcc", "-fsyntax-only", f"-I{include_dir()}", "-xc", "-"]
            subprocess.run(compiler, input=source, text=True, check=True)
        elif block.language in ("json", "toml", "yaml", "ini"):
            parse_data(block)
        elif block.code:
            raise AssertionError(f"{block}: a block of {block.language} cannot be tested; use a fence with a language")

    def run_python(self, block: Block) -> None:
        code = compile("\n" * (block.line - 1) + shortened(block.text, 1), str(block.page), "exec", dont_inherit=True)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.chdir(self.folder), audited():
            exec(code, self.names)
        self.printed = out.getvalue()

    def run_console(self, block: Block) -> None:
        shell = self.shell(block.notes.get("terminal", ""))
        self.settle(shell)
        for number, (command, wanted) in enumerate(given := commands(block.text), 1):
            if "terminal" in block.notes and number == len(given):
                shell.start(bounded(command, BESIDE))
                shell.pending = block, wanted
                shell.wait_until_it_receives()
                return
            code, self.printed = shell.run(bounded(command))
            meant = "fails" in block.notes and number == len(given)
            assert (code != 0) == meant, f"{block}: {command}: exit code {code}\n{self.printed}"
            if wanted.strip():
                compare(block, wanted, self.printed)

    def shell(self, name: str) -> Shell:
        if name not in self.shells:
            first = self.shell("") if name else None
            self.shells[name] = Shell(self.folder, first)
            self.undo.callback(self.shells[name].close)
        return self.shells[name]

    def settle(self, shell: Shell) -> None:
        """Compare what ran in that terminal, when it is done."""
        if shell.pending is not None:
            (block, wanted), shell.pending = shell.pending, None
            code, printed = shell.finish()
            assert code == 0, f"{block}: exit code {code}\n{printed}"
            compare(block, wanted, printed)


@contextlib.contextmanager
def audited() -> Iterator[None]:
    """Every Umem that is closed meanwhile proves before that it has lost no frame."""
    close = Umem.close

    def prove(self: Umem) -> None:
        if self._open:
            self.audit().check()
        close(self)

    Umem.close = prove  # type: ignore[method-assign]
    try:
        yield
    finally:
        Umem.close = close  # type: ignore[method-assign]


def parse_data(block: Block) -> None:
    if block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "ini":
        configparser.RawConfigParser(strict=False, allow_no_value=True).read_string(block.text)
    else:
        import yaml  # type: ignore[import-untyped]

        assert list(yaml.safe_load_all(block.text))
