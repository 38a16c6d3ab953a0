"""Precisions by the names in parameters and commands; `networks.quantisation` says what each means."""

PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int4")
KV_PRECISIONS = ("auto", "float16", "int8")  # of the target's key/value cache; auto: what it computes in
