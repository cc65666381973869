"""The column ACB PEC of thesis Tables 3.6 to 3.8, from the results of `benchmarks.thesis_tables`.

The envelope certifies eps where the linear bounds prove the image, and 0 for a misclassified one: both are in the results already. What is
left, images that are correctly classified and not proven, gets one bound call each; its nearest plane is the radius. The radii are those of
`ringfence evaluate --methods fastlin,pec` (fastlin,crown,pec for sigmoid and tanh).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bounds.network import Network
from bounds.region import LpBall
from verify.datasets import Dataset, load_dataset
from verify.evaluate import Chunk
from verify.evaluation_command import Job
from verify.evaluation_file import Journal, read_chunks
from verify.provers import Prover


def average_radius(job: Job, methods: Sequence[str], tell: Callable[[int], None] | None = None) -> float | None:
    """ACB PEC over all images that `job` has results for; None before that is any. `tell`: called with the number of images done.

    Radii are kept beside the job's results, chunk by chunk; with `tell` None nothing further is worked on.
    """
    if job.out is None or not job.out.exists():
        return None
    data = load_dataset(job.dataset, job.folder)
    chunks = read_chunks(Journal(job.out).read(job.header(data)), job.settings, job.out)
    journal = Journal(job.out.with_name(f"{job.out.stem}_pec.jsonl"))
    header = job.header(data) | {"envelope": list(methods)}
    records = journal.read(header) if tell is None else journal.resume(header)
    network = None
    for chunk in chunks[len(records) :] if tell is not None else ():
        network = network or Network.from_onnx(job.model)
        record = {"first": chunk.first, "radii": _radii(job, data, network, chunk, methods)}
        journal.append(record)
        records.append(record)
        if tell is not None:
            tell(chunk.first + len(chunk))
    return _mean(records, chunks)


def _mean(records: Sequence[dict[str, Any]], chunks: Sequence[Chunk]) -> float | None:
    done = len(records) == len(chunks) and len(chunks) > 0
    total = math.fsum(radius for record in records for radius in record["radii"])
    return total / sum(map(len, chunks)) if done else None


def _radii(job: Job, data: Dataset, network: Network, chunk: Chunk, methods: Sequence[str]) -> list[float]:
    """The certified radius of every image of a chunk."""
    settings = job.settings
    proven = [any(flags) for flags in zip(*(chunk.certified(name) for name in methods), strict=True)]
    radii = torch.tensor([settings.eps if flag else 0.0 for flag in proven], dtype=torch.float64)
    left = torch.tensor([i for i, flag in enumerate(proven) if chunk.correct[i] and not flag], dtype=torch.long)
    if len(left):
        index = (left + chunk.first).tolist()
        images = torch.from_numpy(data.pixels(index, network.input_shape))
        ball = LpBall(images, settings.eps, settings.norm, (0.0, 1.0) if settings.clip else None)
        labels = torch.from_numpy(data.labels[index].astype("int64"))
        found = [Prover(name)(network, ball, labels, radii=True).radii for name in methods]
        radii[left] = torch.stack([radius for radius in found if radius is not None]).amax(0)
    return radii.tolist()
