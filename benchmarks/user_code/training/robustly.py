import json
from pathlib import Path

from robustly.cli import main

command = "finetune net.pt --model.name victim:make_net --data mnist5k --threat linf:0.05 --method pgd_at"
main([*command.split(), "--epochs", "1", "--count", "40", "--out", "runs/robust"])
robust = json.loads(Path("runs/robust/finetune.json").read_text())["after"]["robust"]["linf:0.05"]
verdict = robust["hits"] / robust["count"]
