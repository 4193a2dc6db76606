// Server-sent events, read from a response while it arrives.

import { ApiError } from "./api.js";

/** Yield the JSON of each event until `[DONE]`. Throws ApiError for an event that reports an error. */
export async function* events(response) {
  let complete = false;
  for await (const line of lines(response.body)) {
    if (!line.startsWith("data:")) continue; // comments keep the connection alive
    const data = line.slice(5).trim();
    complete ||= data === "[DONE]"; // the response ends after it; to stop reading here would abort the connection
    if (complete) continue;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(response.status, chunk.error.message, chunk.error.code);
    yield chunk;
  }
  if (!complete) throw new ApiError(0, "The connection ended before the output did.");
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      yield* parts;
    }
  } finally {
    reader.cancel().catch(() => {}); // of a stream that has failed
  }
}
