"""`%%vllm` in JupyterLab as a reader sees it."""

from playwright.sync_api import expect


def test_an_answer_streams_into_its_cell(lab, page):
    notebook = lab.open(page, ["%load_ext vllm_nb", "%%vllm --temperature 0 --max-tokens 12\nWhat is 2 + 2?"])
    assert notebook.run(0).text_content() == ""
    expect(notebook.run(1)).to_contain_text("tok/s")
    expect(notebook.output(1).locator(".jp-RenderedMarkdown")).to_have_count(1)
