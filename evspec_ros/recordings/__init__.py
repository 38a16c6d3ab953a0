"""Events and frames from files of many formats behind one interface; `opening` lists them."""

from evspec_ros.recordings.opening import open_recording
from evspec_ros.recordings.recording import EventTotals, Recording, RecordingInfo, Topic

__all__ = ["EventTotals", "Recording", "RecordingInfo", "Topic", "open_recording"]
