"""The names that parameters and commands choose from, importable without torch.

`networks.quantisation` says what each precision means, `engines.selection` what each backend is.
"""

PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int4")
EXPORT_PRECISIONS = ("float32", "float16", "bfloat16")  # of an ONNX graph
KV_PRECISIONS = ("auto", "float16", "int8")  # of the target's key/value cache; auto: what it computes in
ACCEPTANCES = ("exact", "typical", "cascade")  # of drafted tokens; only exact is lossless
OVERLAPS = ("auto", "on", "off")  # of event model and prefill; auto: where the networks are on a GPU
DESCRIBE, WAIT = "describe", "wait"  # what is done while a camera is missing
AUTO_DRAFTER = "auto"  # what the checkpoints at hand allow
NEW_HEAD = "new"  # in the place of a draft head's directory: one that begins from nothing and learns
BACKENDS = ("auto", "torch", "onnxruntime", "cuda_graphs")  # of the target's steps and verifications
# Of event encoder, event model and head; tensorrt_int8: plans that were calibrated on a recording.
DRAFTER_BACKENDS = ("auto", "torch", "onnxruntime", "tensorrt", "tensorrt_int8")
PLAIN, MIXED = "plain", "mixed"  # simulated scenes that nothing makes hard to see; all conditions in turn
CONDITIONS = (PLAIN, "camera", "occlusion", "night", "glare", "blur")
RECORDINGS = (  # that `recordings.open_recording` reads, for help and errors
    "a rosbag2 folder, .mcap or .db3 (ROS 2), .bag (ROS 1), Prophesee's .raw (EVT2, EVT2.1, EVT3) or .dat, a "
    "DSEC folder or its events' .h5, .aedat4, .npy, .txt or .csv (also in a .zip)"
)
