//! Answers that no backend has given: a short sentence as plain text, which says nothing of what runs here.

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;

/// An answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The sentence.
    pub text: &'static str,
}

const fn answer(status: u16, text: &'static str) -> Answer {
    Answer { status, text }
}

/// The request names no host, or its target makes no sense.
pub const BAD_REQUEST: Answer = answer(400, "The request is not valid.\n");
/// The client has stopped sending.
pub const REQUEST_TIMEOUT: Answer = answer(408, "The request took too long.\n");
/// No rule has this host and path.
pub const NO_ROUTE: Answer = answer(404, "Nothing is served at this host and path.\n");
/// Something went wrong in the proxy itself.
pub const INTERNAL: Answer = answer(500, "The request could not be handled.\n");
/// The backend's answer is broken.
pub const BAD_GATEWAY: Answer = answer(502, "The backend did not give a valid answer.\n");
/// There is no backend, or none takes connections.
pub const UNAVAILABLE: Answer = answer(503, "No backend is available at present.\n");
/// The backend is too slow.
pub const TIMEOUT: Answer = answer(504, "The backend did not answer in time.\n");

impl Answer {
    /// Gives it to the client.
    ///
    /// # Errors
    /// If the client is gone.
    pub async fn send(self, session: &mut Session) -> Result<()> {
        let mut header = ResponseHeader::build(self.status, Some(3))?;
        header.insert_header(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        )?;
        header.insert_header(header::CONTENT_LENGTH, self.text.len())?;
        header.insert_header(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
        let no_body = session.req_header().method == Method::HEAD;
        session.write_response_header(Box::new(header), no_body).await?;
        if !no_body {
            let text = Bytes::from_static(self.text.as_bytes());
            session.write_response_body(Some(text), true).await?;
        }
        Ok(())
    }
}
