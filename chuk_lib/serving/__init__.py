"""A model behind HTTP: OpenAI's and Anthropic's protocols over the one decoder.

settings     what the command says: address, token, limits
errors       what a client is refused with; reading: bodies and their fields, each checked
engine       the thread that computes: decoders, embeddings, news of rows; models: what it holds
texts        tokens as they come to text and log-probs; prompts, tools: messages to ids and back
chat         `/v1/chat/completions`; completions; messages: Anthropic's; others: the small ones
answers      from a request to rows, and from rows to a body or a stream of events
app          routes, tokens, origins, numbers; server: sockets, time limits, signals
"""
