import json
from pathlib import Path

from robustly.cli import main

command = "finetune net.pt --model.name victim:make_net --data mnist5k --threat linf:0.1 --method pgd_at --epochs 1"
main([*command.split(), "--count", "40", "--out", "runs/robust"])
robust = json.loads(Path("runs/robust/finetune.json").read_text())["after"]["robust"]["linf:0.1"]
verdict = robust["hits"] / robust["count"]
