"""Chats made of a task's problems, for configs/zaya1_8b.py:twin; `python -m configs.chats` writes the file anew.

A chat asks one to three additions. The assistant works the columns out between <think> and </think> and answers after
them. The last one of every tenth chat has many digits, so that its thinking does not fit a row of 256 bytes; in every
fiftieth all three have, so that the chat cannot fit.
"""

import json
from pathlib import Path

from zaya_jax.tasks import make_task

FILE = Path(__file__).parent / "additions.jsonl"
SYSTEM = {"role": "system", "content": "Add."}


def chats(count: int = 150) -> list[dict]:
    """The file's lines."""
    lines = []
    for number in range(count):
        turns = 3 if number % 10 == 0 else 1 + number % 3
        messages = [SYSTEM] * (number % 2)
        for turn in range(turns):
            long = number % 50 == 0 or (number % 10 == 0 and turn == turns - 1)
            problem = make_task("addition", digits=18 if long else 3).problem("train", 10 * number + turn, seed=0)
            worked, _, total = problem.solution.rstrip("\n").rpartition(":")
            messages += [
                {"role": "user", "content": problem.prompt},
                {"role": "assistant", "content": f"<think>{worked}</think>{total}"},
            ]
        lines.append({"messages": messages})
    return lines


def text() -> str:
    return "".join(json.dumps(line) + "\n" for line in chats())
