"""Run the cases beside the checkout and say of each whether it is right.

    python dev/cases.py [--cases FOLDER] [NAME ...]

The cases are small inputs on which the product once fell short: a command or a script each, and in
words what is right. They are not part of the project, so this script holds only the judgements;
tests with inputs of our own stand in ``tests/``. Exit code 1 if one is not right. ``disk.py``
mounts a small file system and needs root; the engine's cases need vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT.parent / "shared" / "cases"
TIMEOUT_S = 600


@dataclass(frozen=True)
class Output:
    """What a command printed."""

    out: str
    err: str
    code: int

    @property
    def text(self) -> str:
        """Return both streams."""
        return self.out + self.err

    def lines(self, start: str) -> list[str]:
        """Return the lines of both streams that begin with ``start``."""
        return [line for line in self.text.splitlines() if line.strip().startswith(start)]


class Wrong(Exception):  # noqa: N818 - what a judgement raises is no error of this script
    """The product's answer is not the right one."""


def need(holds: bool, what: str) -> None:
    """Raise :class:`Wrong` unless ``holds``."""
    if not holds:
        raise Wrong(what)


def shell(command: str, folder: Path) -> Output:
    """Run a shell command in ``folder`` with this environment's programs first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
    )
    return Output(done.stdout, done.stderr, done.returncode)


RENAMED = {
    "e.lifetime._planner": "e.advisor._advisor",
    "e.lifetime.catch_up": "e.advisor.flush",
    "e.lifetime.": "e.advisor.",
    "p._seconds_per_step": "p._pace.seconds",
}
"""Private names that a script looks at, and what they are called now."""


def script(path: Path) -> Output:
    """Run a script of a case from the project's root, with the private names of now."""
    text = path.read_text()
    if not any(name in text for name in RENAMED):
        return shell(f"python {path}", ROOT)
    for name, name_now in RENAMED.items():
        text = text.replace(name, name_now)
    with tempfile.NamedTemporaryFile("w", suffix=".py") as copy:
        copy.write(text)
        copy.flush()
        return shell(f"python {copy.name}", ROOT)


def no_traceback(output: Output) -> None:
    """Raise :class:`Wrong` if a traceback was printed."""
    need("Traceback" not in output.text, f"a traceback: {output.text.strip()[-200:]}")


def numbers(text: str) -> list[float]:
    """Return the numbers in a line, in order."""
    return [float(n) for n in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text.replace(",", ""))]


# -- histories and logs ----------------------------------------------------------------------


def unseen_names(folder: Path) -> None:
    """Names never met change little."""
    output = shell("bash cmd", folder)
    maes = {
        line.split(":")[0].strip(): numbers(line.split("survival")[1])[0]
        for line in output.out.splitlines()
        if "survival" in line
    }
    for name in ("test_cap", "test_model", "test_client"):
        need(maes[name] <= 1.03 * maes["test"], f"{name} {maes[name]} beside {maes['test']}")
    # The four test files carry the same requests; those by user are another set.
    if "u_none" in maes:  # not every copy of the case has the files of a thousand users
        need(maes["u_client100"] <= 1.05 * maes["u_none"], f"by client: {maes}")
        need(maes["alias"] <= 1.05 * maes["u_none"], f"by alias: {maes}")
    asked = [json.loads(line + "}") for line in re.findall(r"\{[^}]*?tokens\": \d+", output.out)]
    for each in asked:
        tokens = each["estimated_remaining_tokens"]
        need(1600 <= tokens <= 2400, f"{each['sequence_id']}: {tokens} instead of about 2,000")


def cap_reached(folder: Path) -> None:
    """Rows at their own cap are cut, not ended."""
    output = shell("bash cmd", folder)
    found = {int(numbers(line)[0]): line for line in output.lines("cap ")}
    above = {cap: numbers(line.split("P(more than 512)")[1])[0] for cap, line in found.items()}
    need(abs(above[4096] - 0.227) < 0.03, f"cap 4096: P(more than 512) is {above[4096]}")
    at = numbers(found[512].split("P(more than 511)")[1])[0]
    need(abs(at - 0.227) < 0.03, f"cap 512: P(more than 511) is {at}")


def common_value(folder: Path) -> None:
    """A value that recurs is inside the intervals."""
    output = shell("bash cmd", folder)
    for line in output.lines("survival"):
        admission, steps = (float(share) for share in re.findall(r"([\d.]+)%", line)[1:3])
        need(admission >= 88 and steps >= 88, f"90 % covers {admission} and {steps}")


def hash_blocks(folder: Path) -> None:
    """Hash blocks of another size are not read as 512 tokens."""
    output = shell("bash cmd", folder)
    refused = output.code != 0 and "block" in output.text
    need("replay: 32 of" in output.out or refused, output.text.strip()[-200:])


def stop_reasons(folder: Path) -> None:
    """No advice that throws stop reasons away."""
    train, convert, *_ = (folder / "cmd").read_text().splitlines()
    output = shell(f"rm -f h.csv; {train}", folder)
    no_traceback(output)
    need("looks like a servegen" not in output.text, "advises the converter for ServeGen")
    need(output.code != 0 or "50.0% censored" in output.out, "two of four were cut")
    forced = shell(convert, folder)
    need(forced.code != 0 or "stop_reason" in forced.err, "drops columns without a word")


def cut_rows(folder: Path) -> None:
    """The longest are not left out without a word."""
    output = shell("bash cmd", folder)
    table = output.out.split("not scored:")[0] + output.err  # what follows is the oracle's
    need("693" in table or "207" in table, "does not say that 207 of 900 are cut")


def closed_loop(folder: Path) -> None:
    """A log of users in a closed loop is one wall clock."""
    output = shell("bash cmd", folder)
    splits = output.lines("split by")
    need(all("time" in line for line in splits), f"{splits}")
    lasts, simulated = (numbers(output.lines("the log lasts")[0])[i] for i in (0, 2))
    need(simulated <= 1.5 * lasts, f"simulated {simulated} s for a log of {lasts} s")


def convert_skip(folder: Path) -> None:
    """What is skipped is said; multi-turn traces are understood."""
    output = shell("bash cmd", folder)
    rows = (folder / "out.jsonl").read_text().splitlines()
    if len(rows) < 5:
        need("skipped" in output.err, "2 of 5 rows, and no word of the others")
    else:
        need(all(json.loads(row).get("session_id") for row in rows), "sessions are lost")


def tool_answers(folder: Path) -> None:
    """Roles that are answers are read."""
    output = shell("bash cmd", folder)
    rows = [line for line in output.out.splitlines() if line.startswith("{")]
    told = "function_call" in output.text or "model" in output.err
    need(len(rows) == 4 or (len(rows) == 3 and output.err) or told, output.text[-300:])


def finish_reasons(folder: Path) -> None:
    """Finish reasons of other engines are known."""
    output = shell("bash cmd", folder)
    rows = output.lines("Rows:")
    need(bool(rows) and numbers(rows[-1])[0] >= 12, output.text.strip()[-300:])


def logs_people_have(folder: Path) -> None:
    """Everyday forms are read, or recognised and named."""
    for line in (folder / "cmd").read_text().splitlines():
        names = re.search(r"in (.*?);", line)
        for name in names[1].split() if names else []:
            if not (folder / name).exists():
                continue
            train = "sagellm-lifetime train --predictor-type survival --output-path ck --data-path "
            output = shell(train + name, folder)
            no_traceback(output)
            need(output.code == 0, f"{name}: {output.err.strip()[-200:]}")


def times(folder: Path) -> None:
    """ISO times and packed files are read."""
    output = shell("rm -f azure.csv.gz; " + (folder / "cmd").read_text(), folder)
    need(len(output.lines("Rows:")) == 2, output.text.strip()[-300:])
    need((folder / "out.csv").exists(), "azure.csv.gz was not converted")


def offsets(folder: Path) -> None:
    """An offset keeps its minutes."""
    output = shell("bash cmd", folder)
    arrivals = sorted(
        json.loads(line)["arrival_time"] for line in output.out.splitlines() if line[:1] == "{"
    )
    need(arrivals == [0.0, 1.0], f"{arrivals}")


# -- hostile calls, files, routes ------------------------------------------------------------


def api(path: Path) -> None:
    """Impossible arguments are refused in one line."""
    output = script(path)
    need("id True is id 1: unknown_updates 0" not in output.out, "True is the id 1")
    allowed = ("RequestError", "LifetimeError", "UnknownSequenceError", "UnknownNameError")
    for line in output.out.strip().splitlines():
        kind = line.split()[0]
        if kind.endswith("Error") and kind not in allowed:
            raise Wrong(line)
    last = output.err.strip().splitlines()[-1:]
    need(output.code == 0 or any(name in last[0] for name in allowed), f"{last}")


def checkpoint(path: Path) -> None:
    """A checkpoint that lies is refused as it is loaded."""
    output = script(path)
    need("Traceback" not in output.out and "rc 2" in output.out, output.text.strip()[-300:])


def fork(path: Path) -> None:
    """A forked child neither hangs nor keeps what its parent holds."""
    output = script(path)
    need("hung 0 of 30" in output.out, output.text.strip()[-400:])
    need(bool(re.search(r"faults \{\}", output.out)), output.out)
    need("left 0" in output.out, output.out)
    need("forked child: fine" in output.out, output.out.strip()[-200:])


def interrupted(path: Path) -> None:
    """Ctrl-C while saving leaves nothing."""
    output = script(path)
    need("leaves []" in output.out, output.text.strip()[-200:])


def journal(path: Path) -> None:
    """A bad row stops nothing."""
    output = script(path)
    for line in output.out.splitlines():
        need("close: ok" in line and "next start: ok" in line, line)
        need(".parquet" in line, line)


def full_disk(path: Path) -> None:
    """A full disk loses nothing that may wait."""
    output = script(path)
    no_traceback(output)
    need("NOT LifetimeError" not in output.out and "???" not in output.out, output.text[-600:])
    given = re.search(r"after room came back: recorded (\d+) lost (\d+) readable (\d+)", output.out)
    need(given is not None and int(given[2]) == 0, output.out[-600:])
    need(given is not None and given[1] == given[3], output.out[-600:])


def routes(path: Path) -> None:
    """Routes answer with one clear status, and to the right caller only."""
    output = script(path)
    need("EXC" not in output.out, "\n".join(output.lines("")) if "EXC" in output.out else "")
    found = {line[:45].strip(): line[45:].strip() for line in output.out.splitlines()}
    for name, status in (
        ("mode key, wrong", "401"),
        ("stats with key configured, none given", "401"),
        ("deep json", "4"),
        ("text/plain cross-site (no preflight), no key", "4"),
    ):
        need(found[name].startswith(f"({status}"), f"{name}: {found[name]}")
    for line in output.out.splitlines():
        if re.match(r"^[-d][rwx-]{9} ", line):
            need(line[4:10] == "------", f"others may read {line}")
    need("(500" not in output.out, output.out)
    need(output.out.strip().endswith("precious"), output.out.strip()[-200:])


# -- a live engine ---------------------------------------------------------------------------


def min_tokens(path: Path) -> None:
    """A stop string before min_tokens is no stop."""
    output = script(path)
    answers = [line.split(":")[-1].strip() for line in output.out.strip().splitlines()]
    need(answers == ["stop", "abort"], output.text.strip()[-300:])


def alarm(path: Path) -> None:
    """The caller's alarm fires."""
    output = script(path)
    need("fired 1 times" in output.out, output.text.strip()[-300:])


def pause(path: Path) -> None:
    """A pause is no step."""
    output = script(path)
    before, after = (
        numbers(line.split("per step")[1])[0]
        for line in output.out.splitlines()
        if line.startswith(("before", "after"))
    )
    need(after <= 2 * before, output.text.strip()[-400:])


def settings(path: Path) -> None:
    """A setting of a wrong type is refused before the engine starts."""
    output = script(path)
    need("ENGINE STEP RAISES" not in output.out, output.out[-600:])
    for line in output.out.splitlines():
        need("400 steps" not in line, line)


def watermark(path: Path) -> None:
    """A watermark of 5 is no share."""
    output = script(path)
    need("watermark 5 ->" not in output.out, output.text.strip()[-300:])


def additional_config(path: Path) -> None:
    """What the user says arrives."""
    output = script(path)
    need(
        all(word in output.out for word in ('"share"', "0.2", '"limit_s"', '"other"')), output.text
    )


Judge = Callable[[Path], None]
HISTORIES: dict[str, Judge] = {
    "01": unseen_names,
    "02": cap_reached,
    "03": common_value,
    "05": hash_blocks,
    "06": stop_reasons,
    "07": cut_rows,
    "08": closed_loop,
    "09": convert_skip,
    "10": tool_answers,
    "12": finish_reasons,
    "13": logs_people_have,
    "15": times,
    "16": offsets,
}
SCRIPTS: dict[str, Judge] = {
    "hostile/api_small.py": api,
    "hostile/ck_small.py": checkpoint,
    "hostile/fork_race.py": fork,
    "hostile/ki.py": interrupted,
    "hostile/journal_poison2.py": journal,
    "hostile/disk.py": full_disk,
    "hostile/http_routes.py": routes,
    "engine/01-min-tokens-stop-then-hangup/repro.py": min_tokens,
    "engine/04-sigalrm-of-the-caller/repro.py": alarm,
    "engine/05-pause-keep-clock/repro.py": pause,
    "engine/11-settings-types/repro.py": settings,
    "engine/11-settings-types/watermark.py": watermark,
    "engine/12-additional-config-dropped/repro.py": additional_config,
}
MEASURED = ("hostile/flood.py", "hostile/drift.py")
"""Floods and drift have no single right answer: a benchmark measures them against targets."""


def judge(name: str, cases: Path) -> str:
    """Return what is wrong with a case, or an empty string."""
    try:
        if name in SCRIPTS:
            SCRIPTS[name](cases / name)
        else:
            (source,) = cases.glob(f"{name}-*")
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch) / source.name
                shutil.copytree(source, folder, copy_function=shutil.copyfile)
                folder.chmod(0o755)
                HISTORIES[name](folder)
    except Wrong as wrong:
        return str(wrong)
    except (LookupError, ValueError, OSError, subprocess.TimeoutExpired) as error:
        return f"cannot be judged: {type(error).__name__}: {error}"
    return ""


def main() -> None:
    """Run the named cases, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="all, if none is given")
    parser.add_argument("--cases", type=Path, default=CASES)
    options = parser.parse_args()
    if not options.cases.is_dir():
        parser.error(f"{options.cases} is not there: give the folder with --cases")
    names = options.names or [*HISTORIES, *SCRIPTS]
    wrong = 0
    for name in names:
        said = judge(name, options.cases)
        wrong += bool(said)
        print(f"{'WRONG' if said else 'right'}  {name}{': ' if said else ''}{said}", flush=True)
    print(f"{len(names) - wrong} of {len(names)} right; measured elsewhere: {', '.join(MEASURED)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
