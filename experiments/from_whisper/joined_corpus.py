"""One folder of several corpora: the splits that share a name together, without copying audio."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from hf_entmax_asr.atomic_files import atomic_folder, write_text_atomically

METADATA = "metadata.csv"


def join_corpora(folders: Sequence[Path], output: Path) -> Path:
    """Make OUTPUT from folders of the form that `hf_entmax_asr.corpora` calls "folder"; returns it.

    A recording of the folder number n is linked as SPLIT/n/FILE. What is there already is left as it is.

    Raises:
        ValueError: a folder has no split.
    """
    if output.is_dir():
        return output
    with atomic_folder(output) as written:
        rows: dict[str, list[dict[str, str]]] = {}
        for number, folder in enumerate(folders, 1):
            tables = sorted(folder.glob(f"*/{METADATA}"))
            if not tables:
                raise ValueError(f"{folder} has no split: no {METADATA} in a folder of it")
            for table in tables:
                split = table.parent.name
                (written / split).mkdir(exist_ok=True)
                (written / split / str(number)).symlink_to(table.parent.absolute(), target_is_directory=True)
                for row in csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))):
                    linked = {"file_name": f"{number}/{row['file_name']}", "text": row["text"]}
                    rows.setdefault(split, []).append(linked)
        for split, of_split in rows.items():
            text = io.StringIO()
            writer = csv.DictWriter(text, ["file_name", "text"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(of_split)
            write_text_atomically(written / split / METADATA, text.getvalue())
    return output
