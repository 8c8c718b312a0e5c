"""Sessions and their steps, on a real cluster."""

import asyncio
import os
import time
from collections.abc import Iterator

import pytest

from agentsandbox import (
    AsyncClient,
    Client,
    Limits,
    OutputTooLarge,
    ProtocolError,
    Sandbox,
    Session,
    StepFailed,
    StepRefused,
    UnexpectedTar,
)
from faces import open_client

IMAGE = "agent-sandbox.local/agent:1"
PATIENCE = 120.0
SESSION = Session(idle_timeout_seconds=120)


# What a runtime does with a connection is the same for both faces.
@pytest.fixture(
    params=[("threads", "container"), ("asyncio", "container"), ("threads", "default")],
    ids=["runc", "runc-asyncio", "gvisor"],
)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    face, policy = request.param
    with open_client(face, os.environ["AGENTSANDBOX_NAMESPACE"]) as client:
        with client.create(image=IMAGE, policy=policy, session=SESSION) as sandbox:
            yield sandbox


def test_a_step_gives_back_output_and_exit_code(sandbox: Sandbox) -> None:
    step = sandbox.step(
        ["sh", "-c", 'cat; pwd; echo "$NAME" >&2; exit 7'], stdin=b"in\n", env={"NAME": "a=b c"}, cwd="/tmp"
    )
    assert (step.exit_code, step.stdout, step.stderr) == (7, b"in\n/tmp\n", b"a=b c\n")
    with pytest.raises(StepFailed):
        step.check()
    assert sandbox.step(["nonexistent"]).exit_code == 127


def test_a_step_has_its_own_time_limit(sandbox: Sandbox) -> None:
    assert sandbox.step(["sleep", "1000"], timeout=1).timed_out
    assert not sandbox.step(["true"], timeout=60).timed_out


def test_a_stream_larger_than_any_buffer_is_byte_exact(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * (16 << 10)
    assert sandbox.step(["cat"], stdin=data).stdout == data


def test_a_stream_gives_output_as_it_comes_and_takes_input(sandbox: Sandbox) -> None:
    with sandbox.stream_step(["sh", "-c", 'read line; echo "got $line"; cat >&2'], stdin=True, timeout=60) as stream:
        stream.write(b"one\n")
        output = iter(stream)
        assert next(output).data == b"got one\n"
        stream.write(b"two\n")
        stream.close_stdin()
        assert b"".join(chunk.data for chunk in output if chunk.stream == "stderr") == b"two\n"
        assert stream.exit_code == 0


def test_endless_output_is_bounded_and_the_session_goes_on(sandbox: Sandbox) -> None:
    with pytest.raises(OutputTooLarge):
        sandbox.step(["cat", "/dev/zero"], max_output=1 << 20)
    assert sandbox.step(["echo", "on"]).text == "on\n"


def test_files_go_in_and_out(sandbox: Sandbox) -> None:
    content = bytes(range(256)) * 4096
    sandbox.write_file("deep/er/file.bin", content, mode=0o600)
    assert sandbox.read_file("deep/er/file.bin") == content
    assert sandbox.step(["stat", "-c", "%a", "deep/er/file.bin"]).text == "600\n"
    changed = float(sandbox.step(["stat", "-c", "%Y", "deep/er/file.bin"]).check().text)
    assert abs(changed - time.time()) < PATIENCE
    with pytest.raises((UnexpectedTar, OutputTooLarge)):
        sandbox.read_file("deep/er/file.bin", max_bytes=1000)


def test_what_is_no_regular_file_is_not_read(sandbox: Sandbox) -> None:
    sandbox.step(["sh", "-c", "mkdir folder; ln -s /etc/passwd link; mkfifo fifo"]).check()
    for path in ("folder", "link", "fifo", "missing"):
        with pytest.raises((UnexpectedTar, ProtocolError, StepRefused)):
            sandbox.read_file(path)


SLEEPERS = """n=0
for process in /proc/[0-9]*; do
    [ "$(tr '\\0' ' ' < $process/cmdline 2>/dev/null)" = "sleep 1234 " ] && n=$((n+1))
done
echo $n"""
THREE_SLEEPERS = ["sh", "-c", "setsid sleep 1234 & (sleep 1234 &) ; echo begun; sleep 1234"]


def wait_for_sleepers(sandbox: Sandbox, number: int) -> None:
    until = time.monotonic() + 20
    while (found := int(sandbox.step(["sh", "-c", SLEEPERS], timeout=20).check().text)) != number:
        assert time.monotonic() < until, f"{found} processes in place of {number}"


def test_leaving_a_stream_early_ends_all_that_the_step_started(sandbox: Sandbox) -> None:
    with sandbox.stream_step(THREE_SLEEPERS) as stream:
        assert next(iter(stream)).data == b"begun\n"
        wait_for_sleepers(sandbox, 3)
    wait_for_sleepers(sandbox, 0)


def test_of_a_step_with_input_leaving_ends_only_the_input(sandbox: Sandbox) -> None:
    command = ["sh", "-c", "sleep 1234 & cat; echo read > read; wait"]
    with sandbox.stream_step(command, stdin=True, timeout=30):
        wait_for_sleepers(sandbox, 1)
    sandbox.step(["sh", "-c", "until [ -e read ]; do sleep 0.1; done"], timeout=20).check()
    wait_for_sleepers(sandbox, 1)


def test_cancelling_the_task_of_a_step_ends_all_that_it_started() -> None:
    async def cancelled(session: Sandbox) -> None:
        async with AsyncClient(os.environ["AGENTSANDBOX_NAMESPACE"]) as client:
            step = asyncio.create_task((await client.get(session.name)).step(THREE_SLEEPERS))
            await asyncio.to_thread(wait_for_sleepers, session, 3)
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step

    with Client(os.environ["AGENTSANDBOX_NAMESPACE"]) as client:
        with client.create(image=IMAGE, policy="container", session=SESSION) as session:
            asyncio.run(cancelled(session))
            wait_for_sleepers(session, 0)


def test_a_step_over_the_budget_is_refused(client: Client) -> None:
    with client.create(image=IMAGE, policy="container", session=SESSION, limits=Limits(steps=1)) as sandbox:
        sandbox.step(["true"]).check()
        with pytest.raises(StepRefused, match="StepBudgetExceeded"):
            sandbox.step(["true"])
        assert sandbox.wait(PATIENCE).reason == "StepBudgetExceeded"
        with pytest.raises(StepRefused, match="SessionEnded"):
            sandbox.step(["true"])


def test_a_running_session_tells_what_it_did(sandbox: Sandbox) -> None:
    sandbox.step(["true"]).check()
    assert sandbox.live().steps == 1


def test_steps_run_beside_each_other() -> None:
    async def all_steps() -> list[bytes]:
        async with AsyncClient(os.environ["AGENTSANDBOX_NAMESPACE"]) as client:
            created = await client.create(image=IMAGE, policy="container", session=SESSION)
            async with created as sandbox:
                await sandbox.wait_ready(PATIENCE)
                steps = (sandbox.step(["echo", str(number)]) for number in range(5))
                return [step.stdout for step in await asyncio.gather(*steps)]

    assert asyncio.run(all_steps()) == [b"%d\n" % number for number in range(5)]
