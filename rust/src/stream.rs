//! Decoding one token at a time.
//!
//! Not `tokenizers::DecodeStream`: that one fails where a decoder takes back what it gave (ByteFallback turns a whole
//! run of byte tokens into U+FFFD when one character of it is broken), never lets go of skipped or broken tokens, and
//! has no end.

use crate::ffi::Result;
use crate::tokenizer::Shared;

const REPLACEMENT: char = '\u{FFFD}';

/// An unfinished character shows as one U+FFFD (ByteLevel) or as one for each of its bytes (ByteFallback).
const UNFINISHED_CHARS: usize = 3;

/// More tokens than this that still end in U+FFFD are noise; they are given out as they stand.
const HELD_TOKENS: usize = 64;

pub struct TokenStream {
    tokenizer: Shared,
    skip_special: bool,
    /// Tokens of the last finished piece, which decoders want as context (a leading space, say), then the tokens
    /// since.
    window: Vec<u32>,
    context: usize,
    /// The part of the window's text that was given out.
    given: String,
}

impl TokenStream {
    pub fn new(tokenizer: Shared, skip_special: bool) -> Self {
        TokenStream { tokenizer, skip_special, window: Vec::new(), context: 0, given: String::new() }
    }

    pub fn push(&mut self, id: u32) -> Result<String> {
        if !self.is_decoded(id) {
            return Ok(String::new());
        }
        self.window.push(id);
        let text = self.window_text()?;
        let certain = certain_prefix(&text);
        let piece = certain.get(self.given.len()..).unwrap_or_default().to_owned();
        let finished = certain.len() == text.len() && !piece.is_empty();
        self.given.push_str(&piece);
        if finished {
            self.start_window()?;
        } else if self.window.len() - self.context > HELD_TOKENS {
            let rest = text[self.given.len()..].to_owned();
            self.start_window()?;
            return Ok(piece + &rest);
        }
        Ok(piece)
    }

    pub fn finish(&mut self) -> Result<String> {
        let text = self.window_text()?;
        let rest = text[self.given.len()..].to_owned();
        self.window.clear();
        self.context = 0;
        self.given.clear();
        Ok(rest)
    }

    /// Whether `Tokenizer::decode` looks at this token at all.
    fn is_decoded(&self, id: u32) -> bool {
        let token = self.tokenizer.id_to_token(id);
        token.is_some_and(|token| {
            !(self.skip_special && self.tokenizer.get_added_vocabulary().is_special_token(&token))
        })
    }

    /// The window's text, which begins with what was given out of it.
    fn window_text(&mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.window, false)?;
        if text.starts_with(&self.given) {
            return Ok(text);
        }
        // The decoder took back what is out already. It stays out; the tokens since are decoded by themselves.
        self.window.drain(..self.context);
        self.context = 0;
        self.given.clear();
        self.tokenizer.decode(&self.window, false)
    }

    /// All of the window is given out; its newer tokens become the context of the next one.
    fn start_window(&mut self) -> Result<()> {
        self.window.drain(..self.context);
        self.context = self.window.len();
        self.given = self.tokenizer.decode(&self.window, false)?;
        Ok(())
    }
}

/// `text` without what may be an unfinished character at its end.
fn certain_prefix(text: &str) -> &str {
    let mut certain = text;
    for _ in 0..UNFINISHED_CHARS {
        match certain.strip_suffix(REPLACEMENT) {
            Some(shorter) => certain = shorter,
            None => break,
        }
    }
    certain
}
