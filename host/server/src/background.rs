//! Work that nobody's next token waits for, on threads that give way to those that make tokens.

use std::io;
use tokio::sync::oneshot;

/// Runs `work` on a thread of its own and of low priority. How many there are at once is for the caller to limit.
///
/// # Errors
/// When there can be no more threads, or `work` panicked.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("background".to_owned())
        .spawn(move || {
            realm_sandbox::give_way();
            // Whoever asked may have gone.
            let _ = done.send(work());
        })?;
    result
        .await
        .map_err(|_| io::Error::other("background work panicked"))
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn work_gives_its_result_or_says_that_it_panicked() {
        assert_eq!(super::run(|| 7).await.unwrap(), 7);
        let failed = super::run(|| assert!(std::hint::black_box(false))).await;
        assert!(failed.unwrap_err().to_string().contains("panicked"));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn only_its_own_thread_is_slowed() {
        let priority = || rustix::process::getpriority_process(None).unwrap();
        let before = priority();
        let during = super::run(priority).await.unwrap();
        assert!(during > before || before == 19, "{before}, {during}");
        // Also from a thread that has given way itself.
        let again = std::thread::spawn(|| {
            realm_sandbox::give_way();
            realm_sandbox::give_way();
            rustix::process::getpriority_process(None).unwrap()
        });
        assert_eq!(again.join().unwrap(), during);
        assert_eq!(priority(), before);
    }
}
