"""A POST goes where the operator said, to the Internet alone unless he said otherwise, and nowhere by itself."""

import ssl
import threading

import pytest
from tests.unit.pipeline.hook_taker import taker

from llmhost.pipeline import posting
from llmhost.pipeline.posting import NotPosted, Target, is_public, post


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "fe80::1%eth0", "fd00::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "ff02::1", "::"),
        *("64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "::7f00:1", "fec0::1"),
    ],
)
def test_addresses_of_this_machine_and_its_networks_are_not_public(address: str):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_of_the_internet_are(address: str):
    assert is_public(address)


async def test_certificates_are_read_once_and_nobody_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
):
    readers, read = list[threading.Thread](), ssl.create_default_context

    def noted() -> ssl.SSLContext:
        readers.append(threading.current_thread())
        return read()

    monkeypatch.setattr(ssl, "create_default_context", noted)
    posting._trust.cache_clear()
    for _ in range(2):
        with pytest.raises(NotPosted):  # nobody is there
            await post(Target("https://127.0.0.1:1/", may_be_private=True), b"{}", {})

    assert len(readers) == 1
    assert readers[0] is not threading.main_thread()


async def test_a_post_is_taken_with_any_2xx():
    async with taker("202 Accepted") as hook:
        await post(Target(hook.url, may_be_private=True), b"{}", {"webhook-id": "evt_1"})
        [(headers, body)] = hook.taken

    assert (headers["webhook-id"], headers["content-type"]) == ("evt_1", "application/json")
    assert body == b"{}"


@pytest.mark.parametrize("status", ["302 Found", "307 Temporary", "500 No", "400 No", "nonsense"])
async def test_redirects_are_not_followed_and_whatever_is_no_2xx_is_a_failure(status: str):
    async with taker(status) as hook:
        with pytest.raises(NotPosted):
            await post(Target(hook.url, may_be_private=True), b"{}", {})
        assert hook.seen == 1


async def test_private_addresses_are_posted_to_only_where_that_is_wanted():
    async with taker() as hook:
        for url in (hook.url, hook.url.replace("127.0.0.1", "localhost")):
            with pytest.raises(NotPosted, match="no address of the Internet"):
                await post(Target(url), b"{}", {})
        assert hook.seen == 0


async def test_who_does_not_answer_is_given_up():
    async with taker("hang") as hook:
        with pytest.raises(NotPosted, match="no answer within"):
            await post(Target(hook.url, may_be_private=True, timeout_s=0.2), b"{}", {})
    with pytest.raises(NotPosted):
        await post(Target(hook.url, may_be_private=True), b"{}", {})  # nobody is there
