"""Everything that can go wrong, as one tree.

RingfenceError                 base of all errors raised on purpose; the CLI turns each into one line and exit code 2
├── ModelError                 the network cannot be used
│   ├── UnsupportedOpError     a node, op or attribute this version does not understand
│   ├── ShapeError             a shape is dynamic, inconsistent or does not fit
│   └── ImportMismatchError    the imported network does not reproduce the original's outputs
├── SpecError                  the question cannot be used (VNNLIB text, arrays, labels, eps)
├── RegionError                a region is empty, unbounded, reversed or not finite
├── NumericsError              NaN or infinity met where a bound was computed
│   └── DomainError            an op is not defined on all of the interval that its input may take
├── GradientError              an engine or network gives no gradients where a search needs them
├── DataError                  a data set or image file is missing or malformed
├── DeviceError                the device asked for is not there
├── MemoryLimitError           the work cannot be made to fit the memory limit
├── TimeLimitError             the deadline passed before a bound was finished
├── SolverError                a solver is missing, failed or gave an answer we do not understand
│   └── SolverMissingError     the package is not installed; says the pip line
├── ProofError                 a proof and a point that was met contradict each other: a defect of this project or of a solver
├── WorkerError                the processes that should do the work cannot be started
│   └── ClusterError           a cluster is not reachable, or the package that talks to it is not installed
└── OutputError                a result could not be written
    └── ResultsError           a results file is of another kind or version, in use, or damaged
"""

from __future__ import annotations


class RingfenceError(Exception):
    """Base of every deliberate error. The message names the thing, what was met, what was expected, and the way out."""


class ModelError(RingfenceError):
    """The network cannot be used."""


class UnsupportedOpError(ModelError):
    """A node uses an op or attribute that is not supported; the message names the node."""


class ShapeError(ModelError):
    """A shape is dynamic, inconsistent or does not fit."""


class ImportMismatchError(ModelError):
    """The imported network does not reproduce the outputs of the original runtime."""


class SpecError(RingfenceError):
    """The question cannot be used."""


class RegionError(RingfenceError):
    """A region is empty, unbounded, reversed or not finite."""


class NumericsError(RingfenceError):
    """NaN or infinity met where a bound was computed."""


class DomainError(NumericsError):
    """An op is not defined on all of the interval that its input may take, as far as bounds can tell."""


class GradientError(RingfenceError):
    """An engine gives no gradients where a search needs them."""


class DataError(RingfenceError):
    """A data set or image file is missing or malformed."""


class DeviceError(RingfenceError):
    """The device asked for is not available."""


class MemoryLimitError(RingfenceError):
    """The work cannot be made to fit the memory limit."""


class TimeLimitError(RingfenceError):
    """The deadline passed before the work was finished."""


class SolverError(RingfenceError):
    """A solver failed or gave an answer that is not understood."""


class SolverMissingError(SolverError):
    """A solver package is not installed; the message says the pip line to run."""


class ProofError(RingfenceError):
    """A proof is contradicted by a point of the region: a defect of this project or of a solver. No verdict is given."""


class OutputError(RingfenceError):
    """A result could not be written."""


class ResultsError(OutputError):
    """A results file is of another kind or version, is damaged, or is being written by another process."""


class WorkerError(RingfenceError):
    """The processes that should do the work cannot be started."""


class ClusterError(WorkerError):
    """A cluster cannot be reached, or the package that talks to it is not installed; the message says the pip line to run."""
