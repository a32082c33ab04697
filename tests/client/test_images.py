"""Images are sent, whatever they come as; and refused by a text model."""

import base64
from io import BytesIO

import pytest
from PIL import Image

from vllm_nb.client.base import Query
from vllm_nb.client.images import image_url
from vllm_nb.errors import RequestError
from vllm_nb.messages import ChatMessage, ImagePart


def png() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (2, 3), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def decoded(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


def test_files_bytes_and_pictures_in_memory(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png())
    for image in (path, str(path), png(), Image.new("RGB", (2, 3), "red")):
        assert decoded(image_url(image)).size == (2, 3)


@pytest.mark.parametrize("url", ["https://example.org/a.png", "data:image/png;base64,AAAA"])
def test_urls_stay(url):
    assert image_url(url) == url


def test_what_is_no_image(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    for image, message in [
        (tmp_path / "a.txt", "this is no image that is known: use PNG, JPEG, GIF or WebP"),
        (tmp_path / "none.png", "none.png cannot be read: No such file"),
        (5, "an image must be a URL, a path, bytes or a Pillow image, not int"),
    ]:
        with pytest.raises(RequestError, match=message):
            image_url(image)


def test_a_message_with_a_path_is_sent_with_the_picture(tmp_path, engine):
    path = tmp_path / "a.png"
    path.write_bytes(png())
    message = ChatMessage("user", ("What is this?", ImagePart(str(path))))
    (sent,) = Query.chat(message, {}).content
    assert decoded(sent["content"][1]["image_url"]["url"]).size == (2, 3)
    with pytest.raises(RequestError, match="this model takes text only"):
        engine.client.chat(message)
