//! The queue of commands of the engine.

use crate::Model;
use crate::error::EngineError;
use crate::queue_source::Queue;
use crate::sync::{Arc, AtomicU32, Ordering};
use loom::thread::spawn;

pub(crate) const MODELS: &[Model] = &[
    Model::new(
        "inbox: all commands arrive, each sender's in order",
        Some(4),
        arrive,
    ),
    Model::new("inbox: no more than there is room for", None, bound),
    Model::new("inbox: half of the room is a tenant's most", None, half),
    Model::new(
        "inbox: its end wakes the engine and refuses senders",
        None,
        ends,
    ),
    Model::new(
        "inbox: what its end drops may give itself up",
        None,
        gives_up,
    ),
];

const ALICE: u32 = 1;
const BOB: u32 = 2;

fn push<C>(queue: &Queue<C>, tenant: u32, command: C) -> Result<(), EngineError> {
    queue.push(tenant, || Ok((Some(command), ())))
}

/// The engine sleeps whenever nothing is there, and nobody wakes it for nothing. Each way in is once a sender's last, so that
/// no later command makes up for a wake-up that it lost.
fn arrive() {
    let queue = Arc::new(Queue::new(8));
    let senders = [ALICE, BOB].map(|tenant| {
        let queue = Arc::clone(&queue);
        spawn(move || {
            if tenant == BOB {
                queue.give_up((tenant, 0), || ());
            }
            let number = u32::from(tenant == BOB);
            assert_eq!(push(&queue, tenant, (tenant, number)), Ok(()));
            if tenant == ALICE {
                queue.give_up((tenant, 1), || ());
            }
        })
    });
    let mut next = [0; 2];
    while next != [2, 2] {
        assert!(queue.wait(false));
        for (tenant, number) in queue.take() {
            let next = &mut next[usize::from(tenant == BOB)];
            assert_eq!(number, *next);
            *next += 1;
        }
    }
    for sender in senders {
        sender.join().unwrap();
    }
}

/// Room for one command and two that want it, with an engine that may make room between them.
fn bound() {
    let queue = Arc::new(Queue::new(1));
    let senders = [ALICE, BOB].map(|tenant| {
        let queue = Arc::clone(&queue);
        spawn(move || push(&queue, tenant, tenant).is_ok())
    });
    let early = queue.take();
    assert!(early.len() <= 1);
    let accepted = senders.map(|sender| sender.join().unwrap());
    let accepted = accepted.into_iter().filter(|accepted| *accepted).count();
    assert_eq!(early.len() + queue.len(), accepted);
    assert!(accepted >= 1 && queue.len() <= 1);
    // Who gives something up needs no room, and what was taken leaves some.
    queue.give_up(ALICE, || ());
    assert!(!queue.take().is_empty());
    assert_eq!(push(&queue, ALICE, ALICE), Ok(()));
    assert_eq!(push(&queue, BOB, BOB), Err(EngineError::Overloaded));
}

fn half() {
    let queue = Arc::new(Queue::new(4));
    let bobs = Arc::clone(&queue);
    let bob = spawn(move || push(&bobs, BOB, ()));
    let alice = [(); 3].map(|()| push(&queue, ALICE, ()));
    assert_eq!(alice, [Ok(()), Ok(()), Err(EngineError::Overloaded)]);
    assert_eq!(bob.join().unwrap(), Ok(()));
    assert_eq!(queue.len(), 3);
}

/// A command that counts where it ends.
struct Counted(Arc<AtomicU32>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn ends() {
    let (queue, dropped) = (Arc::new(Queue::new(4)), Arc::new(AtomicU32::new(0)));
    let sender = {
        let (queue, command) = (Arc::clone(&queue), Counted(Arc::clone(&dropped)));
        spawn(move || push(&queue, ALICE, command))
    };
    let closer = {
        let queue = Arc::clone(&queue);
        spawn(move || queue.close())
    };
    while queue.wait(false) {
        queue.take();
    }
    let sent = sender.join().unwrap();
    assert!(matches!(sent, Ok(()) | Err(EngineError::Stopped)));
    closer.join().unwrap();
    assert!(queue.is_closed() && queue.take().is_empty());
    assert_eq!(dropped.load(Ordering::Relaxed), 1, "wherever it was");
    let late = push(&queue, BOB, Counted(dropped));
    assert_eq!(late, Err(EngineError::Stopped));
}

/// A command whose end puts another in, as a handle that nobody awaits any more does.
struct Handle(Arc<Queue<Option<Handle>>>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.give_up(None, || ());
    }
}

fn gives_up() {
    let queue = Arc::new(Queue::new(4));
    let closer = {
        let queue = Arc::clone(&queue);
        spawn(move || queue.close())
    };
    let handle = Handle(Arc::clone(&queue));
    let sent = queue.push(ALICE, || Ok((Some(Some(handle)), ())));
    assert!(matches!(sent, Ok(()) | Err(EngineError::Stopped)));
    closer.join().unwrap();
    assert!(queue.take().is_empty());
}
