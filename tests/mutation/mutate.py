#!/usr/bin/env python3
# Copyright The Orrery authors. SPDX-License-Identifier: Apache-2.0
"""Damages the library in one place at a time, and sees whether the tests notice. Run by hand.

    mutate.py list                                     what there is, by number
    mutate.py instrument DIR                           a copy of the repository in DIR, with all mutations and a switch
    cmake --preset test -S DIR -B DIR/build -D CMAKE_CXX_FLAGS=-w -D ORRERY_BUILD_CUDA=ON
    cmake --build DIR/build --target unit_tests test_cuda mpi_tests
    mutate.py run DIR/build [--only 1,5-9] [--all]     one line for each mutation: noticed, SURVIVED or not run

One build holds all mutations: the environment variable ORRERY_MUTATION is the number of the one that is active, and 0
is none. Mutations of kind C change constants that a compiler needs. They are compiled in one by one: configure with
-D CMAKE_CXX_FLAGS="-w -DORRERY_MUTATION=127", build, and `run --only 127`.

`run` asks the tests that mutations.txt names; with --all, all tests for those that these do not notice. It first runs
the same tests without a mutation, which must pass.

mutations.txt holds a mutation in three lines, of which the second and third are the text before and after it, or in
four, if nothing that a test could see changes; the fourth says why, and `run` leaves it out unless --only names it:

    @ FILE KIND TESTS
    - before
    + after
    = why nothing changes

FILE is below include/orrery, TESTS a regular expression on names of ctest. `before` occurs once in the file, in one
line. KIND is E for an expression, S for a statement, C for any text of a constant.
"""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent

SWITCH = """
#include <cstdlib>
namespace orrery_mutation {
inline int number_of(const char* text) { return text == nullptr ? 0 : std::atoi(text); }
inline const int active = number_of(std::getenv("ORRERY_MUTATION"));
}  // namespace orrery_mutation
// Not in constant expressions, so that what is asserted while compiling holds.
#define ORRERY_MUTANT(number) (!__builtin_is_constant_evaluated() && ::orrery_mutation::active == number)
"""


class Mutation:
    def __init__(self, number, file, kind, tests, before, after, why_not=""):
        self.number, self.file, self.kind, self.tests = number, file, kind, tests
        self.before, self.after, self.why_not = before, after, why_not

    def text(self):
        """What takes the place of `before`."""
        n, old, new = self.number, self.before, self.after
        if self.kind == "E":
            return f"(ORRERY_MUTANT({n}) ? ({new}) : ({old}))"
        if self.kind == "S":
            return f"{{ if (ORRERY_MUTANT({n})) {{ {new} }} else {{ {old} }} }}"
        return f"\n#if defined(ORRERY_MUTATION) && ORRERY_MUTATION == {n}\n{new}\n#else\n{old}\n#endif\n"


def read_mutations():
    found = []
    lines = (HERE / "mutations.txt").read_text().splitlines()
    for i, line in enumerate(lines):
        if not line.startswith("@ "):
            continue
        file, kind, tests = line[2:].split()
        if kind not in "ESC" or not lines[i + 1].startswith("- ") or not lines[i + 2].startswith("+ "):
            sys.exit(f"mutations.txt:{i + 1}: expected `@ FILE E|S|C TESTS`, `- before` and `+ after`")
        why_not = lines[i + 3][2:] if lines[i + 3 : i + 4] and lines[i + 3].startswith("= ") else ""
        found.append(Mutation(len(found) + 1, file, kind, tests, lines[i + 1][2:], lines[i + 2][2:], why_not))
    return found


def instrument(mutations, to):
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(".git", "build"), dirs_exist_ok=True)
    include = pathlib.Path(to) / "include" / "orrery"
    wrong = []
    for file in sorted({m.file for m in mutations}):
        text = (include / file).read_text()
        places = []
        for m in mutations:
            if m.file != file:
                continue
            if text.count(m.before) != 1:
                wrong.append(f"{m.number}: {file} has {text.count(m.before)} times: {m.before}")
                continue
            at = text.index(m.before)
            places.append((at, at + len(m.before), m))
        places.sort(key=lambda place: place[0])
        for (_, end, one), (begin, _, other) in zip(places, places[1:]):
            if begin < end:
                wrong.append(f"{one.number} and {other.number} change the same text of {file}")
        for begin, end, m in reversed(places):
            text = text[:begin] + m.text() + text[end:]
        (include / file).write_text(text)
    if wrong:
        sys.exit("\n".join(wrong))
    config = include / "config.hpp"
    config.write_text(config.read_text() + SWITCH)
    print(f"{len(mutations)} mutations of {len({m.file for m in mutations})} headers in {to}")


def passes(build, tests, number, seconds):
    """Do the tests pass? None: there are no such tests."""
    command = ["ctest", "--test-dir", str(build), "--stop-on-failure", "--timeout", str(seconds), "--no-tests=error"]
    if tests:
        command += ["-R", tests]
    done = subprocess.run(command, env={**os.environ, "ORRERY_MUTATION": str(number)}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if "No tests were found" in done.stdout or "Not Run" in done.stdout:
        return None, ""
    first = re.search(r"Test +#\d+: (\S+) .*\*\*\*", done.stdout)
    return done.returncode == 0, first.group(1) if first else ""


def run(mutations, build, all_tests, seconds):
    sound = {}
    counts = {"noticed": 0, "SURVIVED": 0, "not run": 0}
    for m in mutations:
        if m.tests not in sound:
            sound[m.tests], failed = passes(build, m.tests, 0, seconds)
            if sound[m.tests] is False:
                print(f"     {failed} of {m.tests} fails without a mutation", flush=True)
        how = "not run"
        by = ""
        if sound[m.tests]:
            passed, by = passes(build, m.tests, m.number, seconds)
            if passed and all_tests:
                passed, by = passes(build, "", m.number, seconds)
            how = "SURVIVED" if passed else "noticed"
        counts[how] += 1
        print(f"{m.number:4} {how:9} {m.file}: {m.before}  ->  {m.after}  {by}", flush=True)
    print(", ".join(f"{count} {how}" for how, count in counts.items()))
    return 1 if counts["SURVIVED"] else 0


def chosen(mutations, only):
    if not only:
        return mutations
    numbers = set()
    for part in only.split(","):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return [m for m in mutations if m.number in numbers]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    commands.add_parser("instrument").add_argument("directory")
    of_run = commands.add_parser("run")
    of_run.add_argument("build")
    of_run.add_argument("--only", default="", help="numbers, such as 1,5-9")
    of_run.add_argument("--all", action="store_true", help="all tests, for what the named ones do not notice")
    of_run.add_argument("--seconds", type=int, default=120, help="for one test; one that takes longer has noticed")
    given = parser.parse_args()
    mutations = read_mutations()
    if given.command == "list":
        for m in mutations:
            print(f"{m.number:4} {m.kind} {m.file} ({m.tests})\n       - {m.before}\n       + {m.after}")
            if m.why_not:
                print(f"       = {m.why_not}")
    elif given.command == "instrument":
        instrument(mutations, given.directory)
    else:
        every = chosen(mutations if given.only else [m for m in mutations if not m.why_not], given.only)
        if len(every) > 1:  # those of constants need a build each
            every = [m for m in every if m.kind != "C"]
        sys.exit(run(every, given.build, given.all, given.seconds))


if __name__ == "__main__":
    main()
