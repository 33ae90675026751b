//! Server-sent events: an answer as it is made. An error after the first byte is an event, and then there is no `[DONE]`.

use super::answer::Answer;
use super::render::Renderer;
use crate::error::ApiError;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use realm_sandbox::ReplyEvent;
use serde_json::Value;
use std::convert::Infallible;

/// A stream between two pieces.
struct Streaming {
    answer: Answer,
    renderer: Renderer,
    first: Option<ReplyEvent>,
    choices: Vec<ChoiceState>,
    ended: bool,
}

#[derive(Clone, Default)]
struct ChoiceState {
    opened: bool,
    finished: bool,
    /// Characters of its text so far.
    offset: usize,
}

/// The response that streams this answer. `first` is its first event, which was awaited to know the status.
pub(super) fn response(
    answer: Answer,
    renderer: Renderer,
    choices: u32,
    first: ReplyEvent,
) -> Response {
    let choices = vec![ChoiceState::default(); choices as usize];
    let streaming = Streaming {
        answer,
        renderer,
        first: Some(first),
        choices,
        ended: false,
    };
    let pieces = stream::unfold(streaming, |mut streaming| async {
        let piece = streaming.piece().await?;
        Some((Ok::<_, Infallible>(Bytes::from(piece)), streaming))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // A proxy that collects answers would turn a stream into a wait.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl Streaming {
    /// The events of the next piece that has any.
    async fn piece(&mut self) -> Option<String> {
        let mut out = String::new();
        while out.is_empty() && !self.ended {
            let event = match self.first.take() {
                Some(event) => event,
                None => self.answer.next().await?,
            };
            self.write(event, &mut out);
        }
        (!out.is_empty()).then_some(out)
    }

    fn write(&mut self, event: ReplyEvent, out: &mut String) {
        match event {
            ReplyEvent::Delta {
                choice,
                text,
                logprobs,
                ..
            } => {
                self.open(choice, out);
                let Some(state) = self.choices.get_mut(choice as usize) else {
                    return;
                };
                if !text.is_empty() || !logprobs.is_empty() {
                    push(
                        out,
                        &self.renderer.delta(choice, &text, &logprobs, state.offset),
                    );
                    state.offset += text.chars().count();
                }
            }
            ReplyEvent::ChoiceFinished { choice, reason } => {
                self.open(choice, out);
                if let Some(state) = self.choices.get_mut(choice as usize) {
                    state.finished = true;
                    push(out, &self.renderer.finish(choice, reason));
                }
            }
            ReplyEvent::Json(_) => {} // a function's way to answer; chats and completions are text
            ReplyEvent::End(Ok(usage)) => {
                self.ended = true;
                for choice in 0..self.choices.len() {
                    if !self.choices[choice].finished {
                        // Every choice a client asked for ends, also one the component did not write to.
                        let choice = choice as u32;
                        self.open(choice, out);
                        push(
                            out,
                            &self
                                .renderer
                                .finish(choice, realm_engine::StopReason::EndOfTurn),
                        );
                    }
                }
                if self.renderer.include_usage {
                    push(out, &self.renderer.usage(&usage));
                }
                out.push_str("data: [DONE]\n\n");
            }
            ReplyEvent::End(Err(error)) => {
                self.ended = true;
                push(out, &ApiError::from(error).body());
            }
        }
    }

    fn open(&mut self, choice: u32, out: &mut String) {
        let Some(state) = self.choices.get_mut(choice as usize) else {
            return;
        };
        if !std::mem::replace(&mut state.opened, true)
            && let Some(chunk) = self.renderer.opening(choice)
        {
            push(out, &chunk);
        }
    }
}

fn push(out: &mut String, event: &Value) {
    out.push_str("data: ");
    out.push_str(&event.to_string());
    out.push_str("\n\n");
}
