"""Uses an MCP server as an agent's host does, by the official client: starts it, works with its tools, and hangs up.

Arguments: the server's program and its arguments."""

import asyncio
import os
import sys

from mcp import Client, StdioServerParameters


def text_of(result):
    """What a tool returned, as one text."""
    return "".join(part.text for part in result.content if part.type == "text")


async def main():
    server = StdioServerParameters(command=sys.argv[1], args=sys.argv[2:], env=dict(os.environ))
    async with Client(server, read_timeout_seconds=120) as client:

        async def call(tool, **arguments):
            result = await client.call_tool(tool, arguments)
            return bool(result.is_error), text_of(result)

        assert client.server_info.name == "agentsandbox", client.server_info
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"run_command", "write_file", "read_file", "list_files"}, tools
        for tool in tools.values():
            assert tool.description and tool.input_schema["properties"], tool

        failed, told = await call("write_file", path="data/main.py", content="print(6 * 7)")
        assert not failed, told
        assert await call("run_command", command=["python3", "data/main.py"]) == (False, "exit code 0\n[stdout]\n42\n")
        assert await call("read_file", path="/workspace/data/main.py") == (False, "print(6 * 7)")
        failed, told = await call("list_files", path="data")
        assert not failed and "main.py" in told, told
        # What fails in the sandbox is told as such, and the session goes on.
        failed, told = await call("read_file", path="no-such")
        assert failed and told, told
        failed, told = await call("run_command", command=["sh", "-c", "echo no >&2; exit 3"])
        assert "exit code 3" in told and "no" in told, told
        # Calls at the same time do not wait for each other's ends.
        both = await asyncio.gather(
            call("run_command", command=["sh", "-c", "until [ -e there ]; do sleep 0.05; done; echo met"]),
            call("write_file", path="there", content=""),
        )
        assert both[0] == (False, "exit code 0\n[stdout]\nmet\n"), both
        print("WORKED", flush=True)
        # The test looks at the cluster meanwhile.
        await asyncio.to_thread(sys.stdin.readline)


asyncio.run(main())
