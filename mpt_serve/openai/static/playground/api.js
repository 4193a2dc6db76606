// Requests to the server that this page comes from, whatever the prefix that it is served below.

import { apiKey, askForKey } from "./access.js";

/** The address that all paths of the API follow: that of the page, without its last part. */
export const BASE = new URL("./", location.href);

/** An error that the server reports, or that no response came. */
export class ApiError extends Error {
  /** status: of HTTP, 0 where the server was not reached. */
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** Return the error of a response. */
  static async of(response) {
    const body = await response.json().catch(() => null);
    const error = body?.error ?? {};
    return new ApiError(response.status, error.message ?? `The server responded with status ${response.status}.`, error.code);
  }
}

/** Return the response to one request, whatever its status. Rejects with ApiError if none comes. */
export async function send(path, body, signal) {
  const key = apiKey();
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(new URL(path, BASE), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "same-origin",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, "The server cannot be reached.");
  }
}

/** Return the successful response to a request; asks for a key as often as the server refuses one. */
export async function request(path, body, signal) {
  for (;;) {
    const used = apiKey();
    const response = await send(path, body, signal);
    if (response.ok) return response;
    const error = await ApiError.of(response);
    if (response.status !== 401) throw error;
    if (apiKey() === used) await askForKey(used === null ? "" : error.message);
  }
}

/** Return the JSON of a GET, or of a POST with a body. */
export async function json(path, body) {
  return (await request(path, body)).json();
}
