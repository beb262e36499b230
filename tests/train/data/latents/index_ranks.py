"""What test_latents_index.py runs in two processes: python index_ranks.py FOLDER."""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from fastvideo_records import record, write

from train.data.latents import index as latent_index


def parquets(folder):
    return sorted(folder.rglob("*.parquet"))


def told(folder, files):
    """The error's words."""
    try:
        latent_index.read_index(folder, files)
    except (ValueError, FileNotFoundError) as e:
        return f"{type(e).__name__}: {e}"
    return ""


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank, opened, plain = dist.get_rank(), [], latent_index._contents

    def counting(file):
        opened.append(file.name)
        return plain(file)

    latent_index._contents = counting
    index = latent_index.read_index(folder, parquets(folder))
    same = [index.records.tolist(), index.groups.tolist(), index.kind.tolist(), index.kinds]
    found = {"index": same, "first": opened.copy()}
    latent_index.read_index(folder, parquets(folder))
    found["second"] = opened[len(found["first"]) :]
    dist.barrier()
    if rank == 0:
        write(folder / "0.parquet", [record(i) for i in range(7)], row_group_size=3)
    dist.barrier()
    changed = latent_index.read_index(folder, parquets(folder))
    found["changed"] = opened[len(found["first"]) :], len(changed.records)
    there = folder
    if rank == 1:
        there = folder.with_name("elsewhere")
        there.symlink_to(folder)
    found["elsewhere"] = len(latent_index.read_index(there, parquets(there)).records)
    found["names"] = told(folder, parquets(folder)[rank : 3 + rank])
    found["others"] = told(folder, parquets(folder)[: 3 + rank])
    dist.barrier()
    if rank == 0:
        parquets(folder)[1].write_text("not parquet")
    dist.barrier()
    found["bad"] = told(folder, parquets(folder))
    found["none"] = told(folder, [])
    own = folder / f"own{rank}"
    for name, rows in (("0.parquet", 3 + rank), ("1.parquet", 4 - rank)):
        write(own / name, [record(i) for i in range(rows)])
    found["size"] = sum(file.stat().st_size for file in parquets(own))
    found["exchanged"] = told(own, parquets(own))
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
