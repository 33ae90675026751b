//! Server-sent events: an answer as it is made. An error after the first byte is an event, and then there is no `[DONE]`.

use super::openai::Renderer;
use crate::error::ApiResult;
use crate::ingress::generation::{Generation, GenerationEvent};
use axum::http::HeaderValue;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

/// The comment of a stream that has nothing to say.
const KEEP_ALIVE: &str = "keep-alive";

/// A stream between two events.
struct Streaming {
    generation: Generation,
    renderer: Renderer,
    /// Events that are rendered and not sent.
    out: VecDeque<String>,
    /// Choices whose opening chunk went out.
    opened: Vec<bool>,
    ended: bool,
}

/// The response that streams this answer, with a comment whenever it is silent for as long as `keep_alive`. `first` is its
/// first event where that has come already.
pub(in crate::ingress) fn response(
    generation: Generation,
    renderer: Renderer,
    keep_alive: Duration,
    first: Option<GenerationEvent>,
) -> Response {
    let mut streaming = Streaming {
        opened: vec![false; generation.choices()],
        generation,
        renderer,
        out: VecDeque::new(),
        ended: false,
    };
    // Some clients and proxies give on nothing of an answer before there is something in its body.
    let mut opening = None;
    match first {
        Some(first) => streaming.write(Ok(first)),
        None => opening = Some(Ok(Event::default().comment(KEEP_ALIVE))),
    }
    let events = stream::unfold(streaming, |mut streaming| async {
        let text = streaming.next().await?;
        Some((Ok::<_, Infallible>(Event::default().data(text)), streaming))
    });
    let events = stream::iter(opening).chain(events);
    let keep_alive = KeepAlive::new().interval(keep_alive).text(KEEP_ALIVE);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // A proxy that collects answers would turn a stream into a wait.
    let headers = response.headers_mut();
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl Streaming {
    /// The data of the next event.
    async fn next(&mut self) -> Option<String> {
        while self.out.is_empty() && !self.ended {
            let event = self.generation.next().await;
            self.write(event);
        }
        self.out.pop_front()
    }

    fn write(&mut self, event: ApiResult<GenerationEvent>) {
        match event {
            Ok(GenerationEvent::Delta(delta)) => {
                self.open(delta.choice);
                let chunk = self.renderer.delta(&delta);
                self.push(&chunk);
            }
            Ok(GenerationEvent::Finished { choice, reason }) => {
                self.open(choice);
                let chunk = self.renderer.finish(choice, reason);
                self.push(&chunk);
            }
            Ok(GenerationEvent::Value(_)) => {} // a function's way to answer; chats and completions are text
            Ok(GenerationEvent::Ended(usage)) => {
                self.ended = true;
                if self.renderer.include_usage {
                    let chunk = self.renderer.usage(&usage);
                    self.push(&chunk);
                }
                self.out.push_back("[DONE]".to_owned());
            }
            Err(error) => {
                self.ended = true;
                self.push(&error.body());
            }
        }
    }

    fn open(&mut self, choice: u32) {
        let opened = std::mem::replace(&mut self.opened[choice as usize], true);
        if !opened && let Some(chunk) = self.renderer.opening(choice) {
            self.push(&chunk);
        }
    }

    fn push(&mut self, event: &Value) {
        self.out.push_back(event.to_string());
    }
}
