"""MCP servers that behave and servers that do not: each is named, and the run goes on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chuk_lib.env.mcp.client import McpClient
from chuk_lib.env.mcp.servers import McpError, McpServer, mcp_servers
from chuk_lib.env.mcp.supervisor import McpLimits
from chuk_lib.env.orchestrator import Orchestrator, run_within
from chuk_lib.env.place import PLACE
from chuk_lib.env.task import HybridTask
from chuk_lib.errors import ConfigError, DataError
from tests.conftest import RunChuk, chuk_environment

SCRIPT = str(Path(__file__).with_name("mcp_server.py"))
COMMAND = (sys.executable, SCRIPT)
FAST = McpLimits(call_seconds=60.0, backoff_seconds=0.05)


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def ends_within(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_alive(pid)


def test_a_server_that_dies_floods_and_lies_is_named_and_the_run_goes_on() -> None:
    told: list[str] = []
    bad, good = McpServer("bad", COMMAND, env={"KEY": "1"}), McpServer("good", COMMAND)
    with McpClient([bad, good], FAST, ["add", "bad:*"], tell=told.append) as client:
        names = [tool.name for tool in client.tools]
        assert "bad_add" in names
        assert "good_add" in names
        assert "count" in names
        assert "nonsense" not in names
        assert next(tool for tool in client.tools if tool.name == "bad_add").parameters["required"]

        cut = client.call("huge", {})
        assert cut.reason == ""
        assert cut.text.endswith("[… 9,980,000 more characters cut]")
        assert len(cut.text) < 20_100
        variables = client.call("variables", {}).text.split()
        assert "KEY" in variables
        assert not [name for name in variables if name.startswith(("OMP", "PYTHON", "CHUK"))]
        task = HybridTask.from_row({"prompt": "1 + 2?", "goal": {"expected_answer": "3"}})
        functions = client.functions()
        assert vars(functions["good_add"])["schema"]["function"] == {
            "name": "good_add",
            "description": "The tool add.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
                "required": ["a", "b"],
            },
        }
        orchestrator = Orchestrator(functions)
        orchestrator.reset(task)
        assert orchestrator.step("TOOL: good_add(a=1)").parts == {"step": -0.01, "invalid": -0.1}
        orchestrator.step("TOOL: good_add(a=1, b=2)")
        failed = orchestrator.step("TOOL: fail()")
        assert failed.parts == {"step": -0.01, "tool_error": -0.2}
        added, error = (result for _, result in failed.observation.happened[1:])
        assert added == "3"
        assert error == client.call("fail", {}).text
        lie = client.call("liar", {})
        assert lie.reason == "protocol"
        assert "Invalid structured content" in lie.text

        first = int(client.call("pid", {}).text)
        died = client.call("die", {})
        assert died.reason == "gone"
        assert "it ended with exit code 3 during the call" in died.text
        assert client.call("good_add", {"a": 1, "b": 2}).text == "3"
        second = int(client.call("pid", {}).text)
        assert second != first
        assert client.call("flood", {}).reason == "gone"
        assert client.call("bad_add", {"a": 1, "b": 2}).text == "3"
    assert not is_alive(first)
    assert not is_alive(second)
    for text in (
        "`bad`: tool `nonsense` is left out",
        "`bad`: tool `liar`",
        "`bad`: it ended with exit code 3, and said: Error: out of luck; started again",
        "`bad`: it wrote 1,000 lines to stdout that answer nothing",
    ):
        assert [line for line in told if text in line], (text, told)
    assert [line.split("is left out")[0] for line in told if "`good`" in line] == [
        "MCP server `good`: tool `nonsense` "
    ]
    assert len(told) <= 10


def test_a_server_that_hangs_is_started_again_while_others_work() -> None:
    told: list[str] = []
    servers = [McpServer("bad", COMMAND), McpServer("good", COMMAND)]
    limits = McpLimits(call_seconds=2.0, backoff_seconds=0.05)
    with McpClient(servers, limits, ["hang", "pid", "good:add"], tell=told.append) as client:
        pid = int(client.call("bad_pid", {}).text)
        waiting = [client.submit("bad_hang", {}), client.submit("bad_hang", {})]
        assert client.call("add", {"a": 2, "b": 2}).text == "4"
        assert {one.result().reason for one in waiting} <= {"timeout", "gone"}
        assert ends_within(pid, 10)
        until = time.monotonic() + 60
        while (again := client.call("bad_pid", {})).reason and time.monotonic() < until:
            pass
        assert int(again.text) != pid
    assert [line for line in told if "`bad`: tool `hang` did not answer within 2 s" in line]
    assert [line for line in told if "`bad`: it answered no call any more" in line]


def test_a_server_that_does_not_come_back_costs_no_time_and_is_tried_on(tmp_path: Path) -> None:
    script, broken = tmp_path / "server.py", tmp_path / "broken"
    script.write_text(
        f"import os, sys\nif os.path.exists({str(broken)!r}): sys.exit('Error: out of order')\n"
        f"os.execv(sys.executable, {[sys.executable, SCRIPT]!r})\n"
    )
    told: list[str] = []
    limits = McpLimits(call_seconds=60, restarts=2, backoff_seconds=0.05, backoff_most=0.5)
    server = McpServer("once", (sys.executable, str(script)))
    with McpClient([server], limits, tell=told.append) as client:
        broken.touch()
        assert client.call("die", {}).reason == "gone"
        later = client.call("add", {"a": 1, "b": 1})
        assert later.reason == "gone"
        assert "Error: out of order; given up after 2 restarts" in later.text
        broken.unlink()
        until = time.monotonic() + 60
        while client.call("add", {"a": 1, "b": 1}).text != "2" and time.monotonic() < until:
            time.sleep(0.05)
        assert client.call("add", {"a": 1, "b": 2}).text == "3"
    assert "given up after 2 restarts, and tried again every 0.5 s" in told[-2]
    assert told[-1] == "MCP server `once`: it is back"


def test_no_process_is_left_when_chuk_is_killed(tmp_path: Path) -> None:
    where = tmp_path / "pid"
    code = (
        "import sys, time\nfrom chuk_lib.env.mcp.client import McpClient\n"
        "from chuk_lib.env.mcp.servers import McpServer\n"
        f"server = McpServer('s', {(*COMMAND, 'stubborn', str(where))!r})\n"
        "with McpClient([server]) as client:\n    print('up', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=chuk_environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        server = int(where.read_text())
        assert is_alive(server)
        os.kill(process.pid, signal.SIGKILL)
        assert ends_within(server, 5)


def test_a_recorded_run_is_repeated_without_the_server(tmp_path: Path) -> None:
    record = tmp_path / "calls.jsonl"
    told: list[str] = []
    with McpClient([McpServer("s", COMMAND)], FAST, record=record) as client:
        first = [client.call("count", {}).text for _ in range(3)]
        placed = client.call("count", {}, place="7/0").text
        tools = client.tools
    assert first == ["1", "2", "3"]
    with record.open("a") as file:
        file.write('{"call": {"server": "s", "to')  # killed while writing
    gone = McpServer("s", ("no-such-command",))
    with McpClient([gone], FAST, record=record, tell=told.append) as client:
        assert client.tools == tools
        before = PLACE.set("7/0")
        assert run_within(30, client.functions()["count"], {}) == (placed, False)
        PLACE.reset(before)
        assert [client.call("count", {}).text for _ in range(3)] == first
        assert told == []
        assert client.call("count", {}).reason == "gone"
    assert "the recording does not hold this call" in told[0]
    with McpClient([McpServer("s", COMMAND)], FAST, record=record) as client:
        assert [client.call("count", {}).text for _ in range(3)] == first
        both = [client.submit("count", {}) for _ in range(2)]  # one server for both
        assert sorted(one.result().text for one in both) == ["1", "2"]
    assert [json.loads(line) for line in record.read_text().splitlines()]
    record.write_text("no\n")
    with pytest.raises(DataError, match="line 1"):
        McpClient([gone], record=record).__enter__()


def test_a_server_over_http_that_goes_away_does_not_end_the_run() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/mcp"
    server = mcp_servers([url])[0][0]
    with pytest.raises(McpError, match="nobody listens there"):
        McpClient([server]).__enter__()
    told: list[str] = []
    with subprocess.Popen([*COMMAND, "http", str(port)]) as process:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        limits = McpLimits(call_seconds=30, restarts=1, backoff_seconds=0.05)
        with McpClient([server], limits, tell=told.append) as client:
            assert client.call("add", {"a": 1, "b": 2}).text == "3"
            assert client.call("die", {}).reason in ("gone", "protocol")
            assert client.call("add", {"a": 1, "b": 2}).reason in ("gone", "protocol")
        process.wait(5)
    assert told
    assert all("`127.0.0.1`" in line for line in told)


def test_listing_names_the_servers_that_are_not_there(tmp_path: Path, run_chuk: RunChuk) -> None:
    file = tmp_path / "server.json"
    file.write_text(
        json.dumps(
            {
                "mcpServers": {
                    "good": {"command": sys.executable, "args": [SCRIPT], "tools": ["add"]},
                    "silent": {
                        "command": "sleep",
                        "args": ["60"],
                        "tools": ["x"],
                        "autoApprove": ["x"],
                    },
                    "off": {"command": "x", "disabled": True},
                }
            }
        )
    )
    began = time.monotonic()
    listed = run_chuk("env", "mcp", "ls", file, "--mcp-connect-seconds", 8, "--json")
    assert time.monotonic() - began < 30
    assert listed.returncode == 1
    servers = json.loads(listed.stdout)["servers"]
    assert [tool["name"] for tool in servers[0]["tools"]] == ["add"]
    assert "no answer within 8 s" in servers[1]["error"]
    assert "`silent.autoApprove` is not used" in listed.stderr
    assert "`off` is disabled" in listed.stderr
    assert "Traceback" not in listed.stderr


def test_a_tool_is_called_by_hand(run_chuk: RunChuk, tmp_path: Path) -> None:
    command, record = shlex.join(COMMAND), tmp_path / "calls.jsonl"
    call = ("env", "mcp", "call", command)
    added = run_chuk(*call, "add", "a=2", "b=40.5", "--mcp-record", record)
    assert (added.stdout, added.returncode) == ("42.5\n", 0), added.stderr
    held = run_chuk(*call[:3], "mcp_server", "add", "a=2", "b=40.5", "--mcp-record", record)
    assert held.stdout == "42.5\n"
    other = run_chuk(*call[:3], "other-server", "add", "a=2", "--mcp-record", record)
    assert other.returncode == 1
    assert "MCP server `other`: no command `other-server` here" in other.stderr
    unknown = run_chuk(*call, "ad", "--mcp-record", record)
    assert unknown.returncode == 2
    assert "there are: add, count" in unknown.stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "names no server"),
        ("A=1", "names no server"),
        ("run 'it", "No closing quotation"),
        ("https://", "no URL of a server"),
        ("nowhere.json", "no such file"),
        ("A=${CHUK_NOT_SET} x", "`CHUK_NOT_SET` is not set"),
    ],
)
def test_what_names_no_server_is_refused(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mcp_servers([value])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "names no servers"),
        ('{"mcpServers": {}}', "names no servers"),
        ('{"mcpServers": {"a": 1}}', "server `a` is not an object"),
        ('{"mcpServers": {"a": {}}}', "needs either `command` or `url`"),
        ('{"mcpServers": {"a": {"command": "x", "url": "y"}}}', "needs either"),
        ('{"mcpServers": {"a": {"command": "x", "arg": []}}}', "unknown key `arg`"),
        ('{"mcpServers": {"a": {"command": "x", "args": {}}}}', "`args` must be a list"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"K": null}}}}', "holds None"),
        ('{"mcpServers": {"a": {"command": "x", "type": "http"}}}', "does not fit"),
        ('{"mcpServers": {"a": {"url": "x", "type": "pigeon"}}}', "does not fit"),
    ],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path: Path, entry: str, message: str) -> None:
    path = tmp_path / "server.json"
    path.write_text(entry)
    with pytest.raises(ConfigError, match=message) as caught:
        mcp_servers([str(path)])
    assert str(path) in caught.value.message


def test_servers_get_short_names_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3")
    given = [
        "TOKEN=${SECRET} npx -y @modelcontextprotocol/server-memory@1.2 --x",
        "uvx mcp-server-git --repository .",
        "python -m mcp_server_time",
        "A=${NOT_SET:-d} mcp-server-git",
        "https://example.org/mcp",
    ]
    servers, notes = mcp_servers(given)
    assert [one.name for one in servers] == ["memory", "git", "time", "git2", "example.org"]
    assert servers[0].env == {"TOKEN": "s3"}
    assert "s3" not in servers[0].where
    assert servers[3].env == {"A": "d"}
    assert notes == []


def test_a_pattern_that_fits_no_tool_is_refused() -> None:
    with pytest.raises(ConfigError, match="no tool is called `multiply`") as caught:
        McpClient([McpServer("s", COMMAND)], allowed=["add", "multiply"]).__enter__()
    assert "add, count" in caught.value.hint
