"""TensorBoard event files in the run directory: `tensorboard --logdir runs` shows all runs by name.

Needs the `tensorboard` package, not TensorFlow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chuk_lib.events import Event
from chuk_lib.sinks.scalars import scalars

_FLUSH_SECONDS = 5


class TensorBoardSink:
    """Scalars of steps and evaluations; settings and samples as text. A resumed run hides the steps
    it takes again."""

    def __init__(self) -> None:
        self.__name__ = "tensorboard"
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        if event.kind == "started":
            self._start(event)
        elif event.kind == "sample":
            self._text("sample", _sample(event), event)
        elif numbers := scalars(event):
            self._write(
                event, [{"tag": name, "simple_value": value} for name, value in numbers.items()]
            )
        elif event.kind == "finished" and self._writer is not None:
            self._writer.close()

    def _start(self, event: Event) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = Path(str(event.data["run_dir"])) / "tensorboard"
        self._writer = EventFileWriter(str(folder), flush_secs=_FLUSH_SECONDS)
        if event.step:  # TensorBoard drops what came after this step
            again = SessionLog(status=SessionLog.START)
            self._writer.add_event(
                Record(wall_time=event.time, step=event.step + 1, session_log=again)
            )
        self._text("settings", _code(json.dumps(event.data.get("config") or {}, indent=2)), event)

    def _text(self, tag: str, text: str, event: Event) -> None:
        from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()], tensor_shape=shape)
        self._write(event, [{"tag": f"{tag}/text_summary", "metadata": metadata, "tensor": tensor}])

    def _write(self, event: Event, values: list[dict[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event as Record
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(**value) for value in values])
        self._writer.add_event(Record(wall_time=event.time, step=event.step, summary=summary))


def _sample(event: Event) -> str:
    return "\n".join(
        f"**{name}**\n\n{_code(str(event.data.get(name, '')))}"
        for name in ("prompt", "target", "completion")
    )


def _code(text: str) -> str:
    """An indented Markdown block, which no content can end."""
    return "".join(f"    {line}\n" for line in text.splitlines())
