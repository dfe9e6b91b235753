"""Runs every command of the project once, on small synthetic data: ``python every_command.py FOLDER``.

Writes the names of the commands to FOLDER/ran.json. Started by ``test_every_command.py`` in a process of its own.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import evaluate
import generate_prefs
import train
from mint import convert, merge, privacy
from mint.demo import __main__ as demo
from mint.evaluation import statistics
from mint.teachers import findings_teacher
from mint.training import monitor

PROGRAMS = {"demo": demo, "generate_prefs": generate_prefs, "evaluate": evaluate, "train": train}
PROGRAMS |= {"convert": convert, "merge": merge, "privacy": privacy}
SUB_COMMANDS = ("demo", "generate_prefs", "evaluate", "privacy")
ran = []


def run(line: str, status: int = 0) -> None:
    """Runs ``PROGRAM ARGUMENTS``, and fails if it ends with another status."""
    program, *arguments = line.split()
    found = PROGRAMS[program].main(arguments)
    assert found == status, f"{line}: {found}"
    ran.append(f"{program} {arguments[0]}" if program in SUB_COMMANDS else program)


def make_inputs(root: Path) -> None:
    """What no command writes: weights in a pickle, and pairs in MMedPO's form."""
    shutil.copytree(root / "llama", root / "inputs" / "pickled")
    weights = root / "inputs" / "pickled" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    first, *_ = (json.loads(line) for line in (root / "rad" / "test.jsonl").read_text().splitlines())
    sides = {"conversations": first["answer"], "rejected_conversations": "Another answer of some length."}
    turns = {name: [{"value": f"<image>{first['question']}"}, {"value": text}] for name, text in sides.items()}
    (root / "inputs" / "mmedpo.json").write_text(json.dumps([{"id": "1", "image": first["images"][0], **turns}]))


def main(root: Path) -> None:
    statistics.RESAMPLES = statistics.FLIPS = 20
    monitor.MAX_TOKENS, findings_teacher.READING.epochs = 3, 1
    run(f"demo cohort --out {root}/cohort --train 30 --test 4")
    run(f"demo tiles --out {root}/tiles --train 1 --test 1")
    run(f"demo radiographs --out {root}/rad --taught 1 --asked 2 --unseen 2")
    run(f"demo gallery --out {root}/gallery.png --patients 1")
    run(f"demo reader --out {root}/reader --faces 100")
    cohort, cpu, short = f"--cases {root}/cohort", "--device cpu", "--max-new-tokens 3 --limit 2 --device cpu"
    lists = "--top-k 2 --bottom-q 2"
    run(f"generate_prefs disease {cohort} --split train {lists} --out {root}/pairs.jsonl")
    tiles = f"--cases {root}/tiles"
    run(f"generate_prefs tissue {tiles} --split train --fit {root}/clip --teacher-epochs 1 --out {root}/t.jsonl {cpu}")
    run(f"demo base --pairs {root}/pairs.jsonl --out {root}/llama --shape demo --vocabulary 500")
    seen = f"{root}/t.jsonl {root}/rad/lessons.jsonl {root}/rad/contrasts.jsonl"
    run(f"demo base --vision --pairs {seen} --out {root}/llava --shape demo --vocabulary 600")
    make_inputs(root)
    run(f"convert {root}/inputs/pickled --out {root}/converted")
    data = f"--model {root}/llama --data {root}/pairs.jsonl"
    run(f"train --loss dpo {data} --eval-data {root}/pairs.jsonl --steps 2 --sample-every 2 --out {root}/run {cpu}")
    run(f"merge --model {root}/llama --adapter {root}/run/adapter --out {root}/merged")
    run(f"generate_prefs questions --vqa {root}/rad/test.jsonl --images {root}/rad --out {root}")
    asked = f"--questions {root}/rad/questions.jsonl --model {root}/llava {cpu}"
    run(f"generate_prefs edit {asked} --max-new-tokens 3 --out {root}/rad/edited.jsonl", status=2)  # no answer is one
    run(f"generate_prefs mmedpo --pairs {root}/inputs/mmedpo.json --images {root}/rad --out {root}/mmedpo.jsonl")
    run(f"generate_prefs corrupt --data {root}/rad/contrasts.jsonl --out {root}/rad/corrupted.jsonl")
    for name, model in (("a", f"{root}/llama"), ("b", f"{root}/llama --adapter {root}/run/adapter")):
        cases = f"{cohort} --split test --teacher-cases {root}/cohort {lists}"
        run(f"evaluate disease --model {model} {cases} --out {root}/{name} {short}")
    vision = f"--model {root}/llava {short}"
    run(f"evaluate tissue {vision} {tiles} --split test --teacher {root}/clip --out {root}/tissue")
    run(f"evaluate vqa {vision} --questions {root}/rad/test.jsonl --out {root}/vqa")
    run(f"evaluate report {vision} --reports {root}/rad/test.jsonl --out {root}/report")
    contrasts = f"--model {root}/llava --data {root}/rad/contrasts.jsonl --limit 2 {cpu}"
    run(f"evaluate sensitivity {contrasts} --out {root}/sensitivity")
    run(f"evaluate attention {contrasts} --out {root}/attention")
    run(f"evaluate inspect {data} --adapter {root}/run/adapter --row 1 --out {root}/inspected.html {cpu}")
    run(f"evaluate compare {root}/a {root}/b --out {root}/compared")
    run(f"evaluate style {root}/pairs.jsonl")
    run(f"privacy scan {root}/pairs.jsonl")
    (root / "inputs" / "ran.json").write_text(json.dumps(sorted(set(ran))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
