//! The bytes of a connection: a client that takes nothing is hung up on, what a WebSocket collects of a message is
//! charged while it arrives, and a closed connection is read on for a moment so that the last answer is not lost.

use realm_sandbox::{MemoryCharge, TenantMemory};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_io_timeout::TimeoutStream;

/// A client that is still sending when the connection ends is listened to for this long: closing while bytes are unread
/// resets the connection, and the client loses an answer that it has not read yet.
const LINGER_WAIT: Duration = Duration::from_secs(1);
/// And up to this many bytes.
const LINGER_BYTES_MAX: usize = 16 << 20;
/// The charge for a message under way grows by this much at a time.
const CHARGE_STEP: usize = 64 << 10;

/// Counts what is read of a WebSocket's message until the message is there; plain HTTP counts its bodies itself.
#[derive(Default)]
pub(crate) struct ReadMeter(Mutex<Counting>);

#[derive(Default)]
enum Counting {
    #[default]
    Nothing,
    /// Nobody's yet: so many bytes are left.
    Stranger(usize),
    /// A tenant's: bytes read since the last message.
    Tenant(MemoryCharge, usize),
}

impl ReadMeter {
    /// Lets a connection without a key send this much.
    pub(crate) fn allow(&self, bytes_max: usize) {
        self.set(Counting::Stranger(bytes_max));
    }

    /// Charges what is read from now on to a tenant.
    pub(crate) fn charge_to(&self, memory: &Arc<TenantMemory>) {
        self.set(Counting::Tenant(MemoryCharge::nothing(memory), 0));
    }

    /// A message is there, and whoever took it has charged it.
    pub(crate) fn message_ended(&self) {
        let mut counting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Counting::Tenant(charge, bytes) = &mut *counting {
            *bytes = 0;
            let _ = charge.resize(0); // giving back never fails
        }
    }

    fn set(&self, to: Counting) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    fn read(&self, count: usize) -> io::Result<()> {
        let mut counting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = match &mut *counting {
            Counting::Nothing => true,
            Counting::Stranger(left) => {
                let fits = count <= *left;
                *left = left.saturating_sub(count);
                fits
            }
            Counting::Tenant(charge, bytes) => {
                *bytes += count;
                *bytes <= charge.bytes() || charge.resize(*bytes + CHARGE_STEP).is_ok()
            }
        };
        if fits {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::OutOfMemory,
            "the sender may not have more memory",
        ))
    }
}

/// A client's connection.
pub(super) struct ClientStream {
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    meter: Arc<ReadMeter>,
    /// Set while the connection is being closed.
    lingering: Option<(Pin<Box<Sleep>>, usize)>,
}

impl ClientStream {
    pub(super) fn new(
        stream: TcpStream,
        write_wait: Duration,
        meter: Arc<ReadMeter>,
    ) -> ClientStream {
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(write_wait));
        ClientStream {
            stream: Box::pin(stream),
            meter,
            lingering: None,
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(self.stream.as_mut().poll_read(context, buffer))?;
        Poll::Ready(self.meter.read(buffer.filled().len() - before))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(this.stream.as_mut().poll_shutdown(context))?;
        }
        let (deadline, left) = this
            .lingering
            .get_or_insert_with(|| (Box::pin(sleep(LINGER_WAIT)), LINGER_BYTES_MAX));
        loop {
            if deadline.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut bytes = [0; 4096];
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(this.stream.as_mut().poll_read(context, &mut buffer));
            let count = buffer.filled().len();
            *left = left.saturating_sub(count);
            // Its end, its failure, or more than anybody sends by mistake.
            if read.is_err() || count == 0 || *left == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
