//! Several operations at once, all of them seen through to the end.
//!
//! As `join_all`, for what every write does: each future is made in the place where it stays. Futures of member operations are
//! hundreds of bytes, and `join_all` moves each of them four times.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use futures_util::future::join_all;
use smallvec::SmallVec;

/// As many are asked again whenever one of them has something to say; more of them are told apart.
const FEW: usize = 16;

/// What all of these end with, in their order.
pub(super) async fn join_each<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: SmallVec<[Pin<Box<F>>; 4]> = futures.map(Box::pin).collect();
    if running.len() > FEW {
        return join_all(running).await;
    }
    let mut ended: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|context| {
        let mut all = Poll::Ready(());
        for (future, ended) in running.iter_mut().zip(&mut ended).filter(|(_, ended)| ended.is_none()) {
            match future.as_mut().poll(context) {
                Poll::Ready(output) => *ended = Some(output),
                Poll::Pending => all = Poll::Pending,
            }
        }
        all
    })
    .await;
    ended.into_iter().map(|output| output.expect("all have ended")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_channel::oneshot;
    use futures_util::FutureExt;

    #[test]
    fn outputs_keep_their_order_whoever_ends_first() {
        for count in [0, 1, 3, FEW, FEW + 1, 100] {
            let (senders, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| oneshot::channel()).unzip();
            let mut all =
                Box::pin(join_each(receivers.into_iter().map(|receiver| async { receiver.await.unwrap() })));
            for (number, sender) in senders.into_iter().enumerate().rev() {
                assert!(all.as_mut().now_or_never().is_none());
                sender.send(number).unwrap();
            }
            assert_eq!(all.now_or_never().expect("all have ended"), (0..count).collect::<Vec<_>>());
        }
    }
}
