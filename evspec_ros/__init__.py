"""A robot that says, in plain words and in real time, what its event camera and its RGB camera see."""

import os

# The threads of GNU OpenMP, torch's on a CPU, wait busily after each operation, by default 300,000 turns, and
# keep the cores from ONNX Runtime's threads and from other processes. `evspec bench decoder --threads 2`
# shows what it costs: verifying 24 nodes took 8.0 ms with them and 5.2 ms so. Read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
