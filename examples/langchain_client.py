"""LangChain's own OpenAI class against `fastmem serve`, with documents that are memorized.

    pip install langchain-openai
    fastmem serve &
    python examples/langchain_client.py

Documents go into `extra_body`: with the class, as here, or with one call, `model.invoke(..., extra_body=...)`.
"""

from langchain_openai import ChatOpenAI


def answer(url: str, model: str, question: str, documents: list[str]) -> str:
    """The answer that is faithful to the documents."""
    chat = ChatOpenAI(
        model=model,
        base_url=url,
        api_key="any",
        temperature=0,
        max_tokens=40,
        extra_body={"documents": [{"text": text} for text in documents], "fastmem": {"method": "fastmem+cd"}},
    )
    return str(chat.invoke(question).content)


if __name__ == "__main__":
    document = "The ferry leaves at nine from the east pier."
    print(answer("http://127.0.0.1:8000/v1", "fastmem-tiny", "When does the ferry leave?", [document]))
