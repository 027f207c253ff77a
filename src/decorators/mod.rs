//! Components that wrap components. Each costs nothing where it is not used, and one may wrap another.
//!
//! ```
//! use corecast::decorators::{Logger, OriginCheck, RateLimit};
//! use corecast::{App, Component};
//!
//! # #[derive(Default)]
//! # struct Chat;
//! # impl Component for Chat {}
//! let guarded = || {
//!     let chat = RateLimit::new(Chat::default(), 20, 40);
//!     Logger::new(OriginCheck::new(chat, ["https://example.com"]))
//! };
//! let app = App::new("localhost", 8080).route("/chat", guarded).allowed_origins(["*"]);
//! ```
//!
//! To write one, see [`crate::Component::inner`].

mod ip_deny_list;
mod logger;
mod origin_check;
mod rate_limit;

pub use ip_deny_list::IpDenyList;
pub use logger::Logger;
pub use origin_check::OriginCheck;
pub use rate_limit::RateLimit;
