"""Become the process that a JSON file describes: `python -I -S launch.py spec.json`.

supervisord's own configuration language cannot carry every command and environment (quotes, `%`, ` #`, new lines);
JSON can. A script of its own, without any import of ours, so that it costs a few milliseconds.
"""

import json
import os
import sys


def main() -> None:
    """Replace this process by the command, with the environment laid over the inherited one."""
    with open(sys.argv[1]) as file:
        spec = json.load(file)
    os.execvpe(spec["command"][0], spec["command"], {**os.environ, **spec["environment"]})


if __name__ == "__main__":
    main()
