//! Following one kind of objects.

use std::fmt::Debug;
use std::hash::{BuildHasher as _, RandomState};
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::watcher::{self, InitialListStrategy, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::Event;
use super::contact::{Contact, status};
use super::kinds::Kind;

/// A watch that has failed and then been silent for so long is taken to work again: a quiet cluster has no news.
/// Longer than a connection may take to be made.
const SILENCE_IS_GOOD: Duration = Duration::from_secs(8);

/// A server that can stream its list does so at once, one that knows of it and does not want to refuses. Servers before
/// 1.27 know nothing of it and stream changes only: after so long without an object they are asked for a list.
const STREAM_STALLS: Duration = Duration::from_secs(10);

/// How often a server is asked for an optional kind that it does not show: it may be upgraded, or its roles changed.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// A kind of objects that is followed, and what is told of it. Whatever is a [`Kind`] is one that is told in [`Event`]s.
pub(crate) trait Feed: Send + 'static {
    /// As the API has it.
    type Object: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static;
    /// As we have it.
    type Light: Send;
    /// What is told.
    type News: Send;
    /// See [`Kind::NAME`].
    const NAME: &'static str;
    /// See [`Kind::OPTIONAL`].
    const OPTIONAL: bool = false;

    /// See [`Kind::requests`].
    fn requests(&self) -> Vec<watcher::Config>;
    /// See [`Kind::light`].
    fn light(&self, object: &Self::Object) -> Self::Light;
    /// See [`Kind::unavailable`].
    fn unavailable(&mut self) -> Option<Self::News> {
        None
    }
    /// These are all.
    fn all(&mut self, list: Vec<Self::Light>) -> Option<Self::News>;
    /// One was added or changed.
    fn changed(&mut self, object: Self::Light) -> Option<Self::News>;
    /// One is gone, or does not count any more.
    fn gone(&mut self, object: Self::Light) -> Option<Self::News>;
}

impl<K: Kind> Feed for K {
    type Object = K::Object;
    type Light = K::Light;
    type News = Event;
    const NAME: &'static str = <K as Kind>::NAME;
    const OPTIONAL: bool = <K as Kind>::OPTIONAL;

    fn requests(&self) -> Vec<watcher::Config> {
        Kind::requests(self)
    }

    fn light(&self, object: &Self::Object) -> Self::Light {
        Kind::light(self, object)
    }

    fn unavailable(&mut self) -> Option<Event> {
        Kind::unavailable(self)
    }

    fn all(&mut self, list: Vec<Self::Light>) -> Option<Event> {
        Kind::all(self, list)
    }

    fn changed(&mut self, object: Self::Light) -> Option<Event> {
        Kind::changed(self, object)
    }

    fn gone(&mut self, object: Self::Light) -> Option<Event> {
        Kind::gone(self, object)
    }
}

/// Sends all objects of the kind, then every change, until nobody listens.
pub(crate) async fn follow<F: Feed>(mut kind: F, client: Client, contact: Arc<Contact>, news: mpsc::Sender<F::News>) {
    let requests = kind.requests();
    let mut request = 0;
    // It was told that the server does not show these.
    let mut withheld = false;
    loop {
        let api = Api::<F::Object>::all(client.clone());
        let mut stream = pin!(watcher(api, requests[request].clone()));
        let mut pause = Pause::default();
        let streams = requests[request].initial_list_strategy == InitialListStrategy::StreamingList;
        let mut lost = false;
        let mut listing = false;
        let mut list = Vec::new();
        loop {
            let limit = match (lost, listing && streams) {
                (_, true) => STREAM_STALLS,
                (true, false) => SILENCE_IS_GOOD,
                // The watcher itself has a limit.
                (false, false) => Duration::MAX,
            };
            let item = match timeout(limit, stream.next()).await {
                Ok(item) => item,
                Err(_) if listing && streams => {
                    request += 1;
                    break;
                }
                Err(_) => {
                    lost = false;
                    contact.answered(F::NAME);
                    pause = Pause::default();
                    continue;
                }
            };
            let event = match item {
                // The watcher may say this before it has asked for anything, so it is no sign of contact.
                Some(Ok(watcher::Event::Init)) => {
                    list = Vec::new();
                    listing = true;
                    continue;
                }
                Some(Ok(event)) => event,
                Some(Err(error)) => {
                    if not_understood(&error) && request + 1 < requests.len() {
                        tracing::debug!(kind = F::NAME, %error, "the API server is older: asking in a simpler way");
                        request += 1;
                        break;
                    }
                    if F::OPTIONAL && refused(&error) {
                        tracing::debug!(kind = F::NAME, %error, "the API server does not show these: going on without");
                        if !mem::replace(&mut withheld, true)
                            && let Some(event) = kind.unavailable()
                            && news.send(event).await.is_err()
                        {
                            return;
                        }
                        sleep(ASK_AGAIN).await;
                        continue;
                    }
                    match error {
                        // A watch that ends is begun again where it was; only failing at that is a loss.
                        watcher::Error::WatchFailed(_) | watcher::Error::WatchError(_) => {
                            tracing::debug!(kind = F::NAME, %error, "a watch was interrupted");
                        }
                        _ => {
                            lost = true;
                            contact.failed(F::NAME, &error);
                        }
                    }
                    sleep(pause.next()).await;
                    continue;
                }
                // A watcher never ends.
                None => return,
            };
            withheld = false;
            if lost {
                lost = false;
                contact.answered(F::NAME);
            }
            pause = Pause::default();
            let event = match event {
                watcher::Event::Init => continue,
                watcher::Event::InitApply(object) => {
                    list.push(kind.light(&object));
                    continue;
                }
                watcher::Event::InitDone => {
                    listing = false;
                    let list = mem::take(&mut list);
                    tracing::debug!(kind = F::NAME, objects = list.len(), "listed");
                    kind.all(list)
                }
                watcher::Event::Apply(object) => {
                    let object = kind.light(&object);
                    kind.changed(object)
                }
                watcher::Event::Delete(object) => {
                    let object = kind.light(&object);
                    kind.gone(object)
                }
            };
            if let Some(event) = event
                && news.send(event).await.is_err()
            {
                return;
            }
        }
    }
}

/// Whether the server says that it does not know what it is asked for, rather than that it cannot answer now.
fn not_understood(error: &watcher::Error) -> bool {
    let begin = matches!(
        error,
        watcher::Error::InitialListFailed(_) | watcher::Error::WatchStartFailed(_)
    );
    begin && matches!(status(error), Some(400 | 405 | 422))
}

/// Whether the server does not have the kind, or does not let us see it.
fn refused(error: &watcher::Error) -> bool {
    matches!(status(error), Some(403 | 404))
}

/// Pauses between attempts: from 0.2 s, doubling to 20 s, each up to a half longer by chance, so that the agents of a
/// cluster do not all come back at once.
#[derive(Default)]
struct Pause {
    attempts: u32,
}

impl Pause {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(20);

    fn next(&mut self) -> Duration {
        let pause = Self::FIRST
            .saturating_mul(1 << self.attempts.min(10))
            .min(Self::LONGEST);
        self.attempts += 1;
        // The state's keys are random for each process and differ from call to call.
        let chance = (RandomState::new().hash_one(self.attempts) >> 40) as u32;
        pause + pause.mul_f32(0.5) * (chance % 1000) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_below_their_limit() {
        let mut pause = Pause::default();
        let pauses: Vec<_> = (0..20).map(|_| pause.next()).collect();
        assert!(
            pauses[0] >= Pause::FIRST && pauses[0] <= Pause::FIRST.mul_f32(1.5),
            "{pauses:?}"
        );
        assert!(
            pauses.iter().all(|pause| *pause <= Pause::LONGEST.mul_f32(1.5)),
            "{pauses:?}"
        );
        assert!(pauses[19] >= Pause::LONGEST, "{pauses:?}");
    }
}
