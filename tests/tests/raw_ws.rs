//! Raw frames against `/ws`: what no client library would send is answered by the close code that the protocol has for it,
//! and harms nobody beside it.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use realm_tests::raw::connect;
use realm_tests::server::Server;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;

const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;
/// The bit of a frame that is the last of its message.
const LAST: u8 = 0x80;
/// The bit of a length that says that the frame is masked.
const MASKED: u8 = 0x80;

/// A connection after its handshake, with a key or without.
fn upgrade(server: &Server, key: Option<&str>) -> Result<TcpStream> {
    let mut stream = connect(server.url())?;
    let key = key.map_or(String::new(), |key| {
        format!("authorization: Bearer {key}\r\n")
    });
    write!(
        stream,
        "GET /ws HTTP/1.1\r\nhost: realm\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{key}\r\n"
    )?;
    // Byte by byte: frames of the server may follow at once.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    ensure!(
        head.starts_with(b"HTTP/1.1 101 "),
        "{}",
        String::from_utf8_lossy(&head)
    );
    Ok(stream)
}

/// A frame as a client sends it; the mask is zero, which leaves the bytes as they are.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = announced(first, payload.len() as u64);
    bytes.extend_from_slice(payload);
    bytes
}

/// The head of a frame of so many bytes.
fn announced(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..126 => bytes.push(MASKED | length as u8),
        126..65_536 => {
            bytes.push(MASKED | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(MASKED | 127);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes
}

/// The next frame of the server: its kind and its bytes.
fn read_frame(stream: &mut TcpStream) -> Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    stream.read_exact(&mut head).context("a frame")?;
    let length = match head[1] {
        126 => {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            usize::from(u16::from_be_bytes(length))
        }
        length => usize::from(length),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    Ok((head[0] & 0xf, payload))
}

/// Reads on to the server's close frame: its code and its words.
fn read_close(stream: &mut TcpStream) -> Result<(u16, String)> {
    loop {
        let (kind, payload) = read_frame(stream)?;
        if kind == CLOSE {
            let (code, reason) = payload.split_first_chunk().context("a close code")?;
            let reason = String::from_utf8(reason.to_vec())?;
            return Ok((u16::from_be_bytes(*code), reason));
        }
    }
}

/// Reads on to the next text frame.
fn read_text(stream: &mut TcpStream) -> Result<Value> {
    loop {
        let (kind, payload) = read_frame(stream)?;
        if kind == TEXT {
            return Ok(serde_json::from_slice(&payload)?);
        }
    }
}

const HEALTH: &[u8] = br#"{"id":"1","function":"health"}"#;

#[test]
fn broken_frames_close_their_connection_with_the_code_for_it() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let mut beside = upgrade(&server, Some(&tenant.key))?;
    let unmasked = [&[LAST | TEXT, HEALTH.len() as u8], HEALTH].concat();
    let nested = [frame(TEXT, b"{"), frame(LAST | TEXT, b"}")].concat();
    for (what, bytes, code) in [
        ("no mask", unmasked, 1002),
        ("a reserved kind", frame(LAST | 0x3, b"x"), 1002),
        ("a reserved bit", frame(LAST | 0x40 | TEXT, b"{}"), 1002),
        ("a ping in pieces", frame(PING, b"x"), 1002),
        ("a large ping", frame(LAST | PING, &[b'x'; 126]), 1002),
        ("a large close", frame(LAST | CLOSE, &[b'x'; 200]), 1002),
        ("a message in a message", nested, 1002),
        ("the rest of nothing", frame(LAST, b"x"), 1002),
        ("no UTF-8", frame(LAST | TEXT, b"\"\xff\xfe\""), 1007),
        (
            "5 MiB, of which nothing is sent",
            announced(LAST | TEXT, 5 << 20),
            1009,
        ),
        ("2^63 bytes", announced(LAST | TEXT, 1 << 63), 1009),
    ] {
        for key in [Some(tenant.key.as_str()), None] {
            let mut stream = upgrade(&server, key)?;
            stream.write_all(&bytes)?;
            let (closed, reason) =
                read_close(&mut stream).with_context(|| format!("{what}, {key:?}"))?;
            ensure!(
                closed == code && !reason.is_empty(),
                "{what}: {closed} {reason:?}"
            );
        }
        beside.write_all(&frame(LAST | TEXT, HEALTH))?;
        let answered = read_text(&mut beside)?;
        ensure!(answered["status"] == "complete", "after {what}: {answered}");
    }
    Ok(())
}

#[test]
fn floods_of_small_frames_change_nothing() -> Result<()> {
    let server = Server::start()?;
    let tenant = server.tenant("acme")?;
    let mut stream = upgrade(&server, Some(&tenant.key))?;
    // A message of one byte a frame, with pings and empty frames between.
    let (first, rest) = HEALTH.split_first().context("a byte")?;
    let mut bytes = frame(TEXT, &[*first]);
    for byte in rest {
        for _ in 0..200 {
            bytes.extend(frame(LAST | PING, b"there?"));
            bytes.extend(frame(LAST | PONG, b""));
            bytes.extend(frame(0, b""));
        }
        bytes.extend(frame(0, &[*byte]));
    }
    bytes.extend(frame(LAST, b""));
    let mut sender = stream.try_clone()?;
    let sending = std::thread::spawn(move || sender.write_all(&bytes));
    let answered = read_text(&mut stream)?;
    ensure!(answered["status"] == "complete", "{answered}");
    ensure!(sending.join().is_ok_and(|sent| sent.is_ok()));
    stream.write_all(&frame(
        LAST | CLOSE,
        &[&1000_u16.to_be_bytes()[..], &[b'x'; 123]].concat(),
    ))?;
    ensure!(read_close(&mut stream)?.0 == 1000, "a long farewell is one");
    Ok(())
}
