"""Tables at a URL: what it keeps secret stays so, and what fails on the way says nothing about the table."""

import http.server
import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest

from features.ingest import load_tables
from features.read import read_table
from recsys.config import DataConfig
from recsys.errors import DataError, ResourceError
from recsys.schema import ITEMS

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def config(**settings: Any) -> DataConfig:
    return DataConfig.model_validate({"events": "e", "items": "i", "event_weights": {"buy": 1.0}} | settings)


@contextmanager
def served(answer: Answer) -> Iterator[str]:
    """The address of a server that answers every GET as told and has no HEAD."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    fsspec.get_filesystem_class("http").clear_instance_cache()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def with_content(content: bytes, length: int | None = None) -> Answer:
    """Sends the content; with a greater length the connection ends before it is all there."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/octet-stream")
        request.send_header("Content-Length", str(length or len(content)))
        request.end_headers()
        request.wfile.write(content)

    return answer


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("query", ["sig=KEY", "sig=a:KEY", "KEY", "a/KEY=1"])
@pytest.mark.parametrize("content", [parquet(title=["Tea"]), b"no table"])
def test_errors_name_a_url_without_user_password_and_signature(query: str, content: bytes) -> None:
    with served(with_content(content)) as host, pytest.raises(DataError) as error:
        read_table(f"http://me:s3c@ret@{host}/table.parquet?{query}", ITEMS, config())
    assert f"http://{host}/table.parquet: " in str(error.value)
    assert not re.search(r"me:|s3c|ret@|KEY", str(error.value))


def test_refused_rows_name_their_file_without_the_signature(tmp_path: Path) -> None:
    pd.DataFrame({"item_id": ["a"], "title": ["Tea"]}).to_parquet(tmp_path / "items.parquet")
    times = pd.to_datetime(["2024-01-01", "2024-01-02"], utc=True)
    rows = parquet(user_id=["u", "v"], item_id=["a", "lost"], event_type=["buy", "buy"], timestamp=times)
    with served(with_content(rows)) as host:
        place = f"http://{host}/bad.parquet?sig=a/KEY"
        tables = load_tables(config(events=place, items=f"{tmp_path}/items.parquet", max_bad_share=0.5))
    assert tables.quarantine["file"].tolist() == ["bad.parquet"]


def test_a_csv_is_one_whatever_its_signature() -> None:
    with served(with_content(b"item_id,title\n007,Tea\n")) as host:
        frame = read_table(f"http://{host}/items.csv?sig=KEY", ITEMS, config())
    assert frame["item_id"].tolist() == ["007"]


def with_status(code: int) -> Answer:
    return lambda request: request.send_error(code)


@pytest.mark.parametrize("name", ["items.parquet", "items.csv", "items-*.csv"])
@pytest.mark.parametrize("code", [401, 403, 500, 503])
def test_a_server_that_refuses_or_fails_is_no_fault_of_the_table(code: int, name: str) -> None:
    with served(with_status(code)) as host, pytest.raises(ResourceError) as error:
        read_table(f"http://{host}/{name}?sig=a:KEY", ITEMS, config())
    for part in (f"http://{host}/", "cannot be fetched", str(code), "credentials, then run again"):
        assert part in str(error.value)
    assert "KEY" not in str(error.value)


def test_nobody_at_an_address_is_told_as_such() -> None:
    with served(with_status(500)) as host:
        pass
    with pytest.raises(ResourceError, match=rf"http://{host}/items\.csv: cannot be fetched"):
        read_table(f"http://{host}/items.csv", ITEMS, config())


def test_a_table_that_is_not_there_is_a_matter_of_the_setting() -> None:
    with served(with_status(404)) as host, pytest.raises(DataError, match=r"no items table there; check data\.items"):
        read_table(f"http://{host}/items.csv", ITEMS, config())


@pytest.mark.parametrize("name", ["items.parquet", "items.csv"])
def test_a_connection_cut_amid_the_content_can_be_tried_again(name: str) -> None:
    content = parquet(item_id=["a"], title=["Tea"]) if name.endswith("parquet") else b"item_id,title\na,Tea\n"
    cut = with_content(content[: len(content) // 2], len(content))
    with served(cut) as host, pytest.raises(ResourceError, match=rf"{name}: cannot be fetched: .*then run again"):
        read_table(f"http://{host}/{name}", ITEMS, config())


def test_a_server_that_refuses_only_the_reading_is_told_without_the_headers_sent() -> None:
    seen: list[str] = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        seen.append(request.path)
        (with_content(b"x") if len(seen) == 1 else with_status(403))(request)

    with served(answer) as host, pytest.raises(ResourceError, match=r"cannot be fetched: .*403") as error:
        read_table(f"http://me:s3cret@{host}/items.parquet", ITEMS, config())
    assert not re.search("(?i)basic|authorization|s3cret", str(error.value))
