"""What an evaluation has found so far, on disk: one file per finished attack, so that a killed one goes on."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from robustly.files import whole_file


@dataclass(frozen=True)
class Finished:
    """One attack's part of the evidence.

    Args:
        columns: table columns by name.
        images: images and ids worth keeping, by name.
        unconfirmed: successes that a second look did not confirm.
        seconds: what it took.
    """

    columns: dict[str, Tensor]
    images: dict[str, Tensor]
    unconfirmed: int
    seconds: float


@dataclass(frozen=True)
class Partial:
    """The folder of an evaluation under way.

    Args:
        folder: where; made when first needed.
        identity: what is evaluated with what; parts of another evaluation are not taken up.
    """

    folder: Path
    identity: str

    def load(self, name: str) -> Finished | None:
        """What an attack found in an earlier, interrupted go; None if nothing, or that of another evaluation."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as stored:
                about = json.loads((stored.metadata() or {}).get("about", "{}"))
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError):
            return None
        if about.get("identity") != self.identity:
            return None
        columns = {
            key.removeprefix("column:"): value for key, value in tensors.items() if key.startswith("column:")
        }
        images = {key.removeprefix("image:"): value for key, value in tensors.items() if key.startswith("image:")}
        return Finished(columns, images, int(about["unconfirmed"]), float(about["seconds"]))

    def save(self, name: str, found: Finished) -> None:
        """Keep what an attack found.

        Raises:
            OSError: read-only folder or full disk.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"column:{key}": value.cpu().contiguous() for key, value in found.columns.items()}
        tensors |= {f"image:{key}": value.cpu().contiguous() for key, value in found.images.items()}
        about = {"identity": self.identity, "unconfirmed": found.unconfirmed, "seconds": found.seconds}
        with whole_file(self.folder / f"{name}.safetensors") as temporary:
            try:
                save_file(tensors, temporary, metadata={"about": json.dumps(about)})
            except SafetensorError as error:
                raise OSError(f"could not write {self.folder / name}: {error}") from error

    def remove(self) -> None:
        """The evaluation is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)
