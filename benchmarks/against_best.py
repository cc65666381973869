"""Ringfence beside the best of other verifiers, question by question: verdict, whole-process seconds and memory.

    python -m benchmarks.against_best --shared ../shared [--timeout 60] [--out results/against_best.jsonl] [--earlier results/FILE.jsonl ...] [--summary]

The others' figures were measured on one quiet core of the same kind of machine, 60 s limit, whole processes (wall clock, which is their CPU time
there). Ours are CPU seconds of the whole process, limits in CPU seconds, because this machine is shared. A run started again continues;
with a longer limit it asks again what a shorter one left open.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.vnncomp_verdicts import CPU_CLOCK, GRACE, SAT_UNSAT, Instance, Record, ask, instances, read

NOTHING = 2.0
"""Seconds that count as met whatever the others need: loading the libraries."""
CROWN, NNENUM, NEURAL, MARABOU = "α,β-CROWN", "nnenum", "NeuralSAT", "Marabou"


@dataclass(frozen=True)
class Row:
    """One question and what others answered: (tool, verdict, seconds); verdict "sat", "unsat" or "open". crown_mb: α,β-CROWN's peak, if known."""

    family: str
    net: str
    spec: str
    others: tuple[tuple[str, str, float], ...] = field(default_factory=tuple)
    crown_mb: float | None = None

    @property
    def best(self) -> tuple[str, float] | None:
        """The quickest tool that decides."""
        decided = [(seconds, tool) for tool, verdict, seconds in self.others if verdict != "open"]
        return min(decided)[::-1] if decided else None

    @property
    def crown(self) -> float | None:
        """α,β-CROWN's seconds."""
        return next((seconds for tool, _, seconds in self.others if tool == CROWN), None)

    def matches(self, instance: Instance) -> bool:
        """Whether this is that instance."""
        net = Path(instance.net).name.split(".onnx")[0].removesuffix("_batch_2000")
        return (self.family, self.net, self.spec) == (instance.family, net, Path(instance.spec).name.split(".vnnlib")[0])


TABLE = """
acasxu ACASXU_run2a_1_2 prop_2 C s 3.7 534 E s 1.7 N s 3.8 M s 25.6
acasxu ACASXU_run2a_1_9 prop_7 C s 3.8 558 E o 60 N s 32.0
acasxu ACASXU_run2a_3_3 prop_2 C o 75.8 2533 E u 45.5 N o 60
mnist_fc mnist-net_256x2 prop_3_0.05 C u 4.2 585
mnist_fc mnist-net_256x4 prop_0_0.03 C u 6.5 819
mnist_fc mnist-net_256x2 prop_0_0.05 C s 22.4 590
marabou_cifar10 cifar10_small networkcifar10_small_index1189_eps0.012_target1_orig0 C s 4.8 520
marabou_cifar10 cifar10_medium networkcifar10_medium_index8498_eps0.012_target2_orig1 C s 4.2 521
oval21 cifar_wide_kw cifar_wide_kw-img8517-eps0.006928104575163399 C o 67.0 1325
cifar10_resnet resnet_2b prop_4_eps_0.008 C u 3.9 647
sri_resnet_a resnet_3b2_bn_mixup_adv_4.0_bs128_lr-1 cifar10_spec_idx_2806_eps_0.00350 C o 71.5 1413
cora mnist-set mnist-img0 C u 5.4 611 E u 1.3 N u 4.8
tllverifybench tllBench_n=2_N=M=8_m=1_instance_0_1 property_N=8_1 C u 5.0 516 E o 60 N u 5.5
cgan cGAN_imgSz32_nCh_1 cGAN_imgSz32_nCh_1_prop_3_input_eps_0.020_output_eps_0.025 C o 105.5 1299
acasxu ACASXU_run2a_1_1 prop_6 E u 21.7 N o 60 M o 60
acasxu ACASXU_run2a_1_2 prop_4 E u 1.5 N u 31.9 M u 17.2
acasxu ACASXU_run2a_1_3 prop_3 E u 1.7 N u 50.7
acasxu ACASXU_run2a_1_6 prop_1 E u 3.2 N u 5.9
acasxu ACASXU_run2a_1_7 prop_3 E s 1.2 N s 3.0
acasxu ACASXU_run2a_2_9 prop_8 E o 60 N s 3.5
acasxu ACASXU_run2a_3_3 prop_9 E u 14.0 N u 38.5
acasxu ACASXU_run2a_4_2 prop_2 E u 47.7
acasxu ACASXU_run2a_4_5 prop_1 E u 6.6
cgan cGAN_imgSz32_nCh_1 cGAN_imgSz32_nCh_1_prop_0_input_eps_0.010_output_eps_0.015 N s 3.0
collins_rul_cnn NN_rul_full_window_20 if_then_7levels_w20 E s 2.4
collins_rul_cnn NN_rul_small_window_20 robustness_4perturbations_delta5_epsilon10_w20 E u 1.3
cora mnist-point mnist-img1 E o 60
rl_benchmarks cartpole cartpole_case_unsafe_19 E u 1.3 N u 5.7
rl_benchmarks cartpole cartpole_case_unsafe_29 E s 1.3 N s 3.2
rl_benchmarks dubinsrejoin dubinsrejoin_case_unsafe_2 E u 1.6 N u 5.1
rl_benchmarks dubinsrejoin dubinsrejoin_case_unsafe_59 E s 1.4
rl_benchmarks lunarlander lunarlander_case_safe_9 E s 1.3
rl_benchmarks lunarlander lunarlander_case_unsafe_65 E s 1.3
safenlp perturbations_0 hyperrectangle_2804 E u 1.4 N u 5.3
safenlp perturbations_0 hyperrectangle_3232 E s 4.0 N s 4.6
tllverifybench tllBench_n=2_N=M=16_m=1_instance_1_2 property_N=16_2
"""
"""family, network, question, then for each tool its letter, verdict (s, u, o for open) and seconds; α,β-CROWN's peak MB after its seconds."""


def rows(table: str = TABLE) -> list[Row]:
    """The table as rows."""
    tools = {"C": CROWN, "E": NNENUM, "N": NEURAL, "M": MARABOU}
    verdicts = {"s": "sat", "u": "unsat", "o": "open"}
    found = []
    for line in table.split("\n"):
        if not line:
            continue
        family, net, spec, *rest = line.split()
        others, memory = [], None
        while rest:
            tool, verdict, seconds, *rest = rest
            others.append((tools[tool], verdicts[verdict], float(seconds)))
            if tool == "C":
                memory, *rest = rest
        found.append(Row(family, net, spec, tuple(others), None if memory is None else float(memory)))
    return found


def summary(asked: Sequence[tuple[Row, Record]]) -> str:
    """A Markdown table and the counts of what is met."""
    lines = [
        "| family | question | ours | CPU s | wall s | MB | best other | s | ratio | α,β-CROWN s | ratio | MB ratio | missed |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    missed: dict[str, int] = {"verdict": 0, "time": 0, "half of α,β-CROWN's time": 0, "half of its memory": 0}
    for row, record in asked:
        found, best = SAT_UNSAT.get(record.verdict, "open"), row.best
        faults = _faults(row, record)
        for fault in faults:
            missed[fault] += 1
        cells = [row.family, f"{row.net.removeprefix('ACASXU_run2a_')} {row.spec}"[:60], found, f"{record.cpu_seconds:.1f}"]
        cells += [f"{record.process_seconds:.1f}", f"{record.peak_mb:.0f}"]
        cells += ["none decides", "", ""] if best is None else [best[0], f"{best[1]:.1f}", f"{record.cpu_seconds / best[1]:.2f}"]
        crown = row.crown
        cells += ["", ""] if crown is None else [f"{crown:.1f}", f"{record.cpu_seconds / crown:.2f}"]
        cells += ["" if row.crown_mb is None else f"{record.peak_mb / row.crown_mb:.2f}", ", ".join(faults)]
        lines.append("| " + " | ".join(cells) + " |")
    ratios = [
        max(record.cpu_seconds, NOTHING) / max(row.best[1], NOTHING) for row, record in asked if row.best and record.verdict in SAT_UNSAT
    ]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan
    lines += ["", f"{len(asked)} questions; missed: " + ", ".join(f"{name} {count}" for name, count in missed.items())]
    lines += [f"Geometric mean of the ratios to the best other (both at least {NOTHING:.0f} s): {mean:.2f}"]
    return "\n".join(lines)


def _faults(row: Row, record: Record) -> list[str]:
    """Which of the targets are missed."""
    faults, best, crown = [], row.best, row.crown
    decided = record.verdict in SAT_UNSAT
    if record.contradicts or (best is not None and not decided):
        faults.append("verdict")
    if decided and best is not None and record.cpu_seconds > max(NOTHING, best[1]):
        faults.append("time")
    if decided and crown is not None and record.cpu_seconds > max(NOTHING, crown / 2):
        faults.append("half of α,β-CROWN's time")
    if row.crown_mb is not None and record.peak_mb > row.crown_mb / 2:
        faults.append("half of its memory")
    return faults


def main() -> None:
    """Ask what is left to ask, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--timeout", type=float, default=60.0, help="CPU seconds for each question")
    parser.add_argument("--out", type=Path, default=Path("results/against_best.jsonl"))
    parser.add_argument("--earlier", type=Path, nargs="*", default=[], help="results of vnncomp_verdicts that fill the gaps of the table")
    parser.add_argument("--summary", action="store_true", help="print the table of the results file and stop")
    options = parser.parse_args()
    wanted = rows()
    every = list(instances(options.shared, list(dict.fromkeys(row.family for row in wanted)), 1))
    pairs = [(row, instance) for row in wanted for instance in every if row.matches(instance)]
    missing = [row for row in wanted if not any(row.matches(instance) for instance in every)]
    for row in missing:
        print(f"no such instance: {row.family} {row.net} {row.spec}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for _, instance in [] if options.summary else pairs:
        known = read(options.out).get(instance.key)
        if known is not None and (known.verdict in SAT_UNSAT or known.limit >= options.timeout):
            continue
        record = ask(CPU_CLOCK, options.shared, instance, options.timeout, GRACE + 10 * options.timeout)
        with options.out.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        print(f"{record.family:16s} {record.net:50s} {record.spec:60s} {record.verdict:9s} {record.cpu_seconds:6.1f} CPU s", flush=True)
    found: dict[tuple[str, str, str], Record] = {}
    for path in (*options.earlier, options.out):
        for key, record in read(path).items():
            if key not in found or record.verdict in SAT_UNSAT or found[key].verdict not in SAT_UNSAT:
                found[key] = record
    print(summary([(row, found[instance.key]) for row, instance in pairs if instance.key in found]))


if __name__ == "__main__":
    main()
