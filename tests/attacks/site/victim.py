"""A connector like any other, with a secret."""

import json
import os
import sys


def answer(request):
    if request["command"] == "Wait":  # in a folder with something in it, until it is told to go on
        os.mkfifo("go-on")
        with open("notes", "w") as notes:
            notes.write(request["config"]["password"])
        with open("go-on"):
            pass
    return {"params": request["params"], "pid": os.getpid(), "folder": os.getcwd()}


if "--lines" in sys.argv:
    with open(3, "w", closefd=False) as results:
        for line in sys.stdin:
            results.write(json.dumps(answer(json.loads(line))) + "\n")
            results.flush()
else:
    print(json.dumps(answer(json.load(sys.stdin))))
