"""Events and frames from files: rosbag2 (mcap, sqlite3), aedat4 and npy behind one interface."""

from evspec_ros.recordings.opening import open_recording
from evspec_ros.recordings.recording import EventTotals, Recording, RecordingInfo, Topic

__all__ = ["EventTotals", "Recording", "RecordingInfo", "Topic", "open_recording"]
