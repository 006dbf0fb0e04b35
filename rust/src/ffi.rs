//! What crosses the C boundary: text, ids, and errors in place of panics.

use std::any::Any;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::{ptr, slice, str};

pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Failure>;

/// `tandem_string`
#[repr(C)]
pub struct Text {
    data: *mut u8,
    size: usize,
}

/// `tandem_ids`
#[repr(C)]
pub struct Ids {
    data: *mut u32,
    size: usize,
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        let size = text.len();
        Text { data: Box::into_raw(text.into_bytes().into_boxed_slice()).cast(), size }
    }
}

impl From<Vec<u32>> for Ids {
    fn from(ids: Vec<u32>) -> Self {
        let size = ids.len();
        Ids { data: Box::into_raw(ids.into_boxed_slice()).cast(), size }
    }
}

#[no_mangle]
pub unsafe extern "C" fn tandem_string_free(text: Text) {
    free(text.data, text.size);
}

#[no_mangle]
pub unsafe extern "C" fn tandem_ids_free(ids: Ids) {
    free(ids.data, ids.size);
}

unsafe fn free<T>(data: *mut T, size: usize) {
    if !data.is_null() {
        drop(Box::from_raw(ptr::slice_from_raw_parts_mut(data, size)));
    }
}

/// Drops what `object` made.
pub unsafe fn free_object<T>(object: *mut T) {
    if !object.is_null() {
        drop(Box::from_raw(object));
    }
}

/// The caller's array; C allows NULL where `size` is 0.
pub unsafe fn array<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        &[]
    } else {
        slice::from_raw_parts(data, size)
    }
}

/// The caller's text.
pub unsafe fn text<'a>(data: *const u8, size: usize) -> Result<&'a str> {
    let valid = str::from_utf8(array(data, size));
    valid.map_err(|error| format!("not UTF-8 at byte {}", error.valid_up_to()).into())
}

/// Runs `body` and puts its text, or the error's, into `out`; whether it was the text.
pub unsafe fn answer(out: *mut Text, body: impl FnOnce() -> Result<String>) -> bool {
    let (ok, text) = match caught(body) {
        Ok(text) => (true, text),
        Err(error) => (false, error.to_string()),
    };
    out.write(text.into());
    ok
}

/// Runs `body` and gives its value to the caller to keep, or NULL and the error's text in `out`.
pub unsafe fn object<T>(out: *mut Text, body: impl FnOnce() -> Result<T>) -> *mut T {
    match caught(body) {
        Ok(value) => Box::into_raw(Box::new(value)),
        Err(error) => {
            out.write(error.to_string().into());
            ptr::null_mut()
        }
    }
}

fn caught<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(panic_text(&*panic).into()))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("internal error: {}", text.unwrap_or("panic"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_messages() {
        let mut out = Text { data: ptr::null_mut(), size: 0 };
        assert!(!unsafe { answer(&mut out, || panic!("at {}", 7)) });
        assert_eq!(unsafe { text(out.data, out.size) }.unwrap(), "internal error: at 7");
        unsafe { tandem_string_free(out) };
    }
}
