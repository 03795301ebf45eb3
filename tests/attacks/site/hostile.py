"""A connector that has been taken over: it runs the code that it is sent. With --lines for many requests."""

import errno
import json
import os
import subprocess
import sys

ARMS = os.path.join(os.path.dirname(os.path.realpath(__file__)), "arms")


def tried(do, *arguments):
    """Do something; return what came of it: the name of the errno, or `done`."""
    try:
        value = do(*arguments)
    except OSError as problem:
        return errno.errorcode.get(problem.errno, str(problem))
    except ValueError as problem:
        return str(problem)
    if hasattr(value, "read"):
        with value:
            value = tried(value.read, 4096)
    return "done" if value is None else f"done: {value!r}"[:400]


def read(path):
    return tried(lambda: open(path, "rb").read(4096))


def write(path, text="taken over"):
    def do():
        with open(path, "w") as file:
            file.write(text)

    return tried(do)


def rewrite(path):
    """Write what is there already, where it can be read: a machine's own setting stays as it is."""
    try:
        with open(path) as file:
            text = file.read()
    except OSError:
        text = "taken over"
    return write(path, text)


def arms(*words, patience=20):
    """Run the other half of the attack to its end; return what it says."""
    done = subprocess.run([ARMS, *map(str, words)], stdout=subprocess.PIPE, timeout=patience)
    if done.returncode:
        raise RuntimeError(f"arms ended with {done.returncode}: {done.stdout.decode()}")
    return done.stdout.decode()


def let_loose(*words, **options):
    """Start it, away from us."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([ARMS, *map(str, words)], start_new_session=True, **{**quiet, **options}).pid


def Run(code: str):
    names = {**globals(), "result": None}
    exec(code, names)
    return names["result"]


if __name__ == "__main__":
    if "--lines" in sys.argv:
        with open(3, "w", closefd=False) as results:
            for line in sys.stdin:
                results.write(json.dumps(Run(json.loads(line)["params"]["code"])) + "\n")
                results.flush()
    else:
        print(json.dumps(Run(json.load(sys.stdin)["params"]["code"])))
