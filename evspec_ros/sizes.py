"""How much one description reads, writes and keeps: the numbers that several rooms share, without torch."""

WINDOW_MS = 50.0  # EventGPT's task; it was made for at most 100
FRAMES_SECONDS = 1.0  # the frames are spread over this long, as the tiny checkpoints were taught
FRAMES = 8  # Video-LLaVA reads this many
STILL_NS = 500_000_000  # without events for this long a scene stands still, and no window ends earlier
KEPT_FRAMES = 4 * FRAMES  # whose embeddings are kept for the next windows
EVENT_IMAGES = 5  # EventGPT sees a window as this many
MAX_NEW_TOKENS = 80
TREE_SIZE = 40  # most draft nodes in a pass
UNSEEN_ROWS = TREE_SIZE * (TREE_SIZE - 1) // 2  # that such a tree expands at most where nobody sees it
CACHE_STEP = 128  # rows; a question some words longer than the last one still fits into the same cache
ROW_BUCKETS = (1, 8, 16, 32, 64)  # rows that a captured pass has; fewer are padded
KEY_STEP = 256  # of the cache's rows as many multiples are read as hold the valid ones
EVENT_AHEAD = 32  # tokens that the event model writes at most before the target's first one is known

# What passes cost is measured once, on so many rows and so often; each run leaves a row in the cache.
TIMED_ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 60, 64)
TIMINGS = 5
LARGEST_TREE = max(TIMED_ROWS) - 1  # nodes; of a larger one nobody knows what it costs
MEASURED_ROWS = (TIMINGS + 1) * len(TIMED_ROWS) + max(TIMED_ROWS)


def cache_rows(rows: int) -> int:
    """The rows of a cache that has to hold so many."""
    return -(-rows // CACHE_STEP) * CACHE_STEP
