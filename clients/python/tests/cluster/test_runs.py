"""Runs with a command, on a real cluster."""

import asyncio
import os

import pytest

from agentsandbox import (
    AlreadyExists,
    AsyncClient,
    Client,
    File,
    Invalid,
    Limits,
    NotFinished,
    NotFound,
    PolicyRejected,
    Resources,
    RunFailed,
    SandboxSpec,
    StepRefused,
    WaitTimeout,
)
from agentsandbox.view import new_name

IMAGE = "agent-sandbox.local/agent:1"
PATIENCE = 120.0


@pytest.fixture
def job() -> SandboxSpec:
    program = "import os; open(os.environ['SANDBOX_OUTPUT'], 'w').write(os.environ['GREETING'])"
    return {
        "image": IMAGE,
        "policy": "container",
        "command": ["python3", "main.py"],
        "env": {"GREETING": "hello"},
        "files": [File("main.py", program)],
        "resources": Resources(cpu="200m", memory="128Mi"),
        "limits": Limits(runtime_seconds=60),
    }


def test_a_job_gives_its_result_and_usage_and_is_deleted(client: Client, job: SandboxSpec) -> None:
    with client.create(**job) as sandbox:
        with pytest.raises(NotFinished):
            _ = sandbox.result
        result = sandbox.wait(PATIENCE).check()
        assert (result.reason, result.exit_code, result.output) == ("Completed", 0, "hello")
        assert result.evidence == "Guest"
        assert sandbox.status.isolation_level == "Container"
        assert sandbox.usage is not None
        assert sandbox.usage.wall_seconds is not None
        assert sandbox.usage.cpu_seconds is not None
        with pytest.raises(StepRefused, match="SessionEnded"):
            sandbox.step(["true"])
    sandbox.delete(wait=True, timeout=PATIENCE)
    with pytest.raises(NotFound):
        sandbox.refresh()
    with pytest.raises(NotFound):
        sandbox.stop()


def test_a_failure_is_a_result_and_raises_only_when_checked(client: Client) -> None:
    program = ["sh", "-c", "echo no such customer >&2; exit 3"]
    with client.create(image=IMAGE, policy="container", command=program) as sandbox:
        result = sandbox.wait(PATIENCE)
        assert (result.reason, result.exit_code) == ("NonZeroExit", 3)
        with pytest.raises(RunFailed, match="no such customer"):
            result.check()


def test_the_same_name_and_run_is_the_same_sandbox(client: Client, job: SandboxSpec) -> None:
    name = new_name("same")
    with client.create(name, **job) as first:
        assert client.create(name, **job).uid == first.uid
        assert client.get(name).uid == first.uid
        assert first.uid in [sandbox.uid for sandbox in client.list()]
        with pytest.raises(AlreadyExists):
            client.create(name, adopt=False, **job)
        with pytest.raises(AlreadyExists, match="different: env"):
            client.create(name, **(job | {"env": {"GREETING": "bye"}}))


def test_another_sandbox_of_the_same_name_is_never_touched(client: Client, job: SandboxSpec) -> None:
    name = new_name("replaced")
    old = client.create(name, **job)
    old.delete(wait=True, timeout=PATIENCE)
    with client.create(name, **job) as new:
        old.delete()
        with pytest.raises(NotFound):
            old.refresh()
        with pytest.raises(NotFound):
            old.stop()
        assert not new.refresh().object["spec"].get("stop")


def test_what_the_policy_does_not_allow_is_rejected_with_its_message(client: Client, job: SandboxSpec) -> None:
    asked = client.create(**(job | {"policy": "default", "limits": Limits(runtime_seconds=86_400)}))
    with asked as sandbox, pytest.raises(PolicyRejected, match=r"runtimeSeconds 86400 .* maximum"):
        sandbox.wait(PATIENCE)
    with pytest.raises(Invalid, match="runtimeSeconds"):
        client.create(**(job | {"limits": Limits(runtime_seconds=-1)}))


def test_a_sandbox_without_a_policy_waits_and_says_why(client: Client, job: SandboxSpec) -> None:
    with client.create(**(job | {"policy": "missing"})) as sandbox, pytest.raises(WaitTimeout, match="PolicyNotFound"):
        sandbox.wait(5)


def test_a_stopped_run_runs_again_with_another_run_id(client: Client) -> None:
    program = ["sh", "-c", "exec sleep 1000"]
    with client.create(image=IMAGE, policy="container", command=program) as sandbox:
        assert sandbox.wait_ready(PATIENCE).status.ready
        sandbox.stop()
        assert sandbox.wait(PATIENCE).reason == "Stopped"
        sandbox.run_again("second")
        with pytest.raises(NotFinished):
            _ = sandbox.result
        assert sandbox.wait_ready(PATIENCE).status.run_id == "second"
        sandbox.stop()
        assert sandbox.wait(PATIENCE).reason == "Stopped"


def test_several_jobs_at_once_in_one_event_loop() -> None:
    async def run(client: AsyncClient, code: int) -> int | None:
        sandbox = await client.create(image=IMAGE, policy="container", command=["sh", "-c", f"exit {code}"])
        async with sandbox:
            return (await sandbox.wait(PATIENCE)).exit_code

    async def all_runs() -> list[int | None]:
        async with AsyncClient(os.environ["AGENTSANDBOX_NAMESPACE"]) as client:
            return await asyncio.gather(*(run(client, code) for code in range(3)))

    assert asyncio.run(all_runs()) == [0, 1, 2]


def test_the_log_of_a_run_is_whole_and_agrees_with_status(client: Client) -> None:
    program = ["sh", "-c", "touch made; exec true"]
    with client.create(image=IMAGE, policy="container", command=program) as sandbox:
        sandbox.wait(PATIENCE).check()
        records = list(sandbox.log(follow=True))
        assert (records[0].activity, records[-1].activity) == ("begin", "end")
        assert records[0].fields["sandbox"] == sandbox.name
        assert [record.seq for record in records] == list(range(len(records)))
        assert sandbox.audit is not None
        assert sandbox.verify_log() == len(records) == sandbox.audit.records
        assert [record.seq for record in sandbox.log(after=0)] == list(range(1, len(records)))
