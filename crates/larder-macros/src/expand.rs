//! Writes the function anew, and its companions beside it.
//!
//! ```text
//! user              looks in the cache, and calls the next on a miss
//! user_uncached     what the function was before
//! user_invalidate   user_clear   user_info   user_invalidate_tag
//! __user_key        the key, hidden; the one place where the path of the function is taken
//! __user_own        the cache, hidden, if the function owns it
//! ```

use std::time::Duration;

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{Attribute, FnArg, Ident, Pat, Type, parse_quote};

use crate::options::{KeyOption, Ttl};
use crate::plan::Plan;
use crate::signature::{Argument, ParameterKind};
use crate::template::{Field, Piece};

/// The longest name of a cache.
const LONGEST_NAME: usize = 64;

/// The function and its companions.
pub(crate) fn expand(plan: &Plan) -> TokenStream {
    let parts = [
        plan.cached(),
        plan.uncached(),
        plan.invalidate(),
        plan.clear(),
        plan.info(),
        plan.invalidate_tag(),
        plan.key_function(),
        plan.own(),
    ];
    parts.into_iter().collect()
}

impl Plan {
    fn is_async(&self) -> bool {
        self.function.sig.asyncness.is_some()
    }

    fn name(&self) -> &Ident {
        &self.function.sig.ident
    }

    fn companion(&self, ending: &str) -> Ident {
        format_ident!("{}_{}", self.name(), ending, span = self.name().span())
    }

    fn hidden(&self, ending: &str) -> Ident {
        format_ident!("__{}_{}", self.name(), ending)
    }

    /// The path of a function beside this one, with its parameters.
    fn beside(&self, function: &Ident, parameters: bool) -> TokenStream {
        let front = self.associated.then(|| quote!(Self::));
        let names = self.parameters.iter().map(|(name, _)| name);
        let turbofish =
            (parameters && !self.parameters.is_empty()).then(|| quote!(::<#(#names),*>));
        quote!(#front #function #turbofish)
    }

    /// The attributes that hold for everything that is written here.
    fn common_attributes(&self) -> Vec<&Attribute> {
        let is_common = |attribute: &&Attribute| {
            let path = attribute.path();
            ["cfg", "cfg_attr", "allow", "warn", "deny", "forbid"]
                .iter()
                .any(|name| path.is_ident(name))
        };
        self.function.attrs.iter().filter(is_common).collect()
    }

    /// The head of a companion: how it is seen, and for whom it is documented.
    fn head(&self, doc: &str) -> TokenStream {
        let (attributes, vis) = (self.common_attributes(), &self.function.vis);
        quote! {
            #(#attributes)*
            #[doc = #doc]
            #[allow(dead_code)]
            #vis
        }
    }

    fn cached(&self) -> TokenStream {
        let (function, name) = (&self.function, self.name());
        let (vis, sig) = (&function.vis, &function.sig);
        // What is expected of the body, the body has to fulfil.
        let attributes = function
            .attrs
            .iter()
            .filter(|attribute| !is_expectation(attribute));
        let (generics, wheres) = (&sig.generics, &sig.generics.where_clause);
        let (asyncness, output) = (&sig.asyncness, &sig.output);
        let inputs = self.inputs(|_| true, true);
        let (cache, key) = (self.find_cache(), self.make_key());
        let checks = self.checks();
        let answer = if self.is_async() {
            self.answer_async()
        } else {
            self.answer_now()
        };
        quote! {
            #(#attributes)*
            #vis #asyncness fn #name #generics (#(#inputs),*) #output #wheres {
                #checks
                #cache
                #key
                #answer
            }
        }
    }

    /// The arguments of a function that is written here.
    fn inputs(&self, wanted: impl Fn(&Argument) -> bool, receiver: bool) -> Vec<TokenStream> {
        let own = self.receiver.iter().filter(|_| receiver).map(|receiver| {
            let mut receiver = receiver.clone();
            if receiver.reference.is_none() {
                receiver.mutability = None;
            }
            receiver.to_token_stream()
        });
        let arguments = self.arguments.iter().filter(|argument| wanted(argument));
        let arguments = arguments.map(|argument| {
            let (ident, ty) = (&argument.ident, &argument.ty);
            quote!(#ident: #ty)
        });
        own.chain(arguments).collect()
    }

    /// The arguments of a companion: what the cache is found by, and what the key is made of if it
    /// needs one.
    fn companion_inputs(&self, with_key: bool) -> Vec<TokenStream> {
        let own = self
            .receiver
            .iter()
            .map(|receiver| match receiver.colon_token {
                Some(_) => receiver.to_token_stream(),
                None => quote!(&self),
            });
        let wanted = |argument: &Argument| {
            let names = &argument.names;
            let found_by = names.iter().any(|name| self.finds_cache(name));
            found_by || (with_key && names.iter().any(|name| self.is_in_key(name)))
        };
        own.chain(self.inputs(wanted, false)).collect()
    }

    /// Finds the cache and calls it `__larder_cache`.
    fn find_cache(&self) -> TokenStream {
        let value = &self.returned.value;
        let Some(cache) = &self.options.cache else {
            let own = self.beside(&self.hidden("own"), false);
            return quote! {
                let __larder_cache: &::larder::Cache<::larder::CallKey, #value> = #own().cache();
            };
        };
        let key = match &self.options.key {
            Some(KeyOption::Expression(_)) => quote!(_),
            _ => quote!(::larder::CallKey),
        };
        let (held, found) = (
            quote!(__larder_held),
            quote_spanned! {at(cache.span())=>
                ::larder::__macros::CacheOf::cache(__larder_held)
            },
        );
        quote! {
            let #held = &#cache;
            let __larder_cache: &::larder::Cache<#key, #value> = #found;
        }
    }

    /// Makes the key and calls it `__larder_key`.
    fn make_key(&self) -> TokenStream {
        if let Some(KeyOption::Expression(key)) = &self.options.key {
            let mentioned = self.key_arguments().map(|argument| {
                let ident = &argument.ident;
                let pattern = argument.pattern.as_ref();
                let pattern = pattern.map_or_else(|| quote!(#ident), ToTokens::to_token_stream);
                quote!(let #pattern = ::core::clone::Clone::clone(&#ident);)
            });
            let key =
                quote_spanned!(at(key.span())=> ::larder::__macros::key_for(__larder_cache, #key));
            return quote! {
                #[allow(unused_variables)]
                let __larder_key = {
                    #(#mentioned)*
                    #key
                };
            };
        }
        let function = self.beside(&self.hidden("key"), true);
        let own = self.key_receiver().map(|receiver| match *receiver.ty {
            Type::Reference(_) => quote!(self,),
            _ => quote!(&self,),
        });
        let arguments = self.key_arguments().map(Argument::by_ref);
        quote!(let __larder_key = #function(#own #(#arguments),*);)
    }

    fn key_receiver(&self) -> Option<&syn::Receiver> {
        let own = Ident::new("self", Span::call_site());
        self.receiver.as_ref().filter(|_| self.is_in_key(&own))
    }

    fn key_arguments(&self) -> impl Iterator<Item = &Argument> {
        let in_key = |argument: &&Argument| argument.names.iter().any(|name| self.is_in_key(name));
        self.arguments.iter().filter(in_key)
    }

    /// The hidden function that makes the key of references.
    fn key_function(&self) -> TokenStream {
        if let Some(KeyOption::Expression(_)) = &self.options.key {
            return TokenStream::new();
        }
        let (hidden, attributes) = (self.hidden("key"), self.common_attributes());
        let generics = &self.function.sig.generics;
        let wheres = &generics.where_clause;
        let own = self.key_receiver().map(|_| quote!(&self,));
        let inputs = self.key_arguments().map(|argument| {
            let (ident, ty) = (&argument.ident, &argument.ty);
            match ty {
                Type::Reference(_) => quote!(#ident: #ty),
                ty => quote!(#ident: &#ty),
            }
        });
        let patterns = self.key_arguments().filter_map(|argument| {
            let (pattern, ident) = (argument.pattern.as_ref()?, &argument.ident);
            Some(quote!(let #pattern = #ident;))
        });
        let maker = self.key_maker(&hidden);
        quote! {
            #(#attributes)*
            #[doc(hidden)]
            #[allow(non_snake_case, unused_variables, clippy::all)]
            fn #hidden #generics (#own #(#inputs),*) -> ::larder::CallKey #wheres {
                #(#patterns)*
                #maker
            }
        }
    }

    fn key_maker(&self, hidden: &Ident) -> TokenStream {
        let (hidden, shown) = (hidden.to_string(), self.name().to_string());
        let has_path = self.options.cache.is_none() || self.options.key.is_none();
        let start = if has_path {
            quote!(::larder::__macros::KeyMaker::of_function(&|| (), #hidden, #shown))
        } else {
            quote!(::larder::__macros::KeyMaker::default())
        };
        // The version of a cache of its own is that cache's.
        let version = self
            .options
            .version
            .as_ref()
            .filter(|_| self.options.cache.is_some());
        let version = version.map(|version| {
            let text = format!("@{}", version.value);
            quote!(.part().text(#text))
        });
        let steps = match &self.options.key {
            Some(KeyOption::Template(template)) => {
                let parts = template.parts.iter().map(|part| {
                    let pieces = part.iter().map(|piece| self.key_piece(piece));
                    quote!(.part() #(#pieces)*)
                });
                parts.collect()
            }
            _ => {
                let names = self.key_arguments().flat_map(|argument| &argument.names);
                let names = names.filter(|name| self.is_in_key(name));
                names
                    .map(|name| quote_spanned!(at(name.span())=> .part().field(#name)))
                    .collect()
            }
        };
        let steps: TokenStream = steps;
        quote!(#start #version #steps .done())
    }

    fn key_piece(&self, piece: &Piece) -> TokenStream {
        let field = match piece {
            Piece::Text(text) => return quote!(.text(#text)),
            Piece::Field(field) => field,
        };
        let parameter = self.parameters.iter().find(|(name, _)| *name == field.root);
        if let Some((name, kind)) = parameter {
            return match kind {
                ParameterKind::Type => quote!(.type_name::<#name>()),
                ParameterKind::Const => quote!(.field(&#name)),
            };
        }
        let value = self.field(field);
        let span = value.span();
        if field.members.is_empty() {
            quote_spanned!(at(span)=> .field(#value))
        } else {
            quote_spanned!(at(span)=> .field(&#value))
        }
    }

    /// What a field of a template stands for, at the place where the argument has its name.
    fn field(&self, field: &Field) -> TokenStream {
        let named = self.arguments.iter().flat_map(|argument| &argument.names);
        let root = named.clone().find(|name| **name == field.root);
        let root = root.unwrap_or(&field.root);
        let members = &field.members;
        quote_spanned!(at(root.span())=> #root #(.#members)*)
    }

    /// What must hold of the type that is returned.
    fn checks(&self) -> TokenStream {
        let (ty, value) = (&self.returned.ty, &self.returned.value);
        let by_clone = (!self.returned.by_arc).then(|| {
            quote_spanned! {at(ty.span())=> {
                #[allow(unused_imports)]
                use ::larder::__macros::{CannotReturn as _, ReturnByClone as _};
                (&::larder::__macros::Return::<#value>(::core::marker::PhantomData)).check();
            }}
        });
        let plain = (!self.returned.fails).then(|| {
            quote_spanned! {at(ty.span())=> {
                #[allow(unused_imports)]
                use ::larder::__macros::{HidesErrors as _, IsPlain as _};
                (&::larder::__macros::Plain::<#ty>(::core::marker::PhantomData)).check();
            }}
        });
        quote!(#by_clone #plain)
    }

    /// How the return type becomes an entry and back.
    fn shape(&self) -> TokenStream {
        let inner = if self.returned.by_arc {
            quote!(::larder::__macros::ByArc)
        } else {
            quote!(::larder::__macros::ByValue)
        };
        if self.returned.optional {
            quote!(::larder::__macros::Optional<#inner>)
        } else {
            inner
        }
    }

    /// How what a call returns is kept.
    fn keeping(&self) -> TokenStream {
        let options = &self.options;
        let ttl = options.ttl.as_ref().map(|ttl| match ttl.value {
            Ttl::For(ttl) => ttl,
            Ttl::Ever => Duration::MAX,
        });
        let ttl = span_option(ttl);
        let grace = span_option(options.grace.as_ref().map(|grace| grace.value));
        let negative = span_option(options.negative.as_ref().map(|negative| negative.value));
        let patterns = options.tags.iter().map(|tag| {
            let pieces: Vec<_> = tag
                .parts
                .iter()
                .enumerate()
                .flat_map(|(at, part)| {
                    let colon = (at > 0).then(|| quote!(":"));
                    colon
                        .into_iter()
                        .chain(part.iter().map(|piece| self.tag_piece(piece)))
                })
                .collect();
            let format = "{}".repeat(pieces.len());
            quote!(::std::format!(#format, #(#pieces),*))
        });
        quote! {
            ::larder::__macros::Keeping {
                ttl: #ttl,
                grace: #grace,
                negative: #negative,
                tags: ::std::vec![#(#patterns),*],
            }
        }
    }

    fn tag_piece(&self, piece: &Piece) -> TokenStream {
        match piece {
            Piece::Text(text) => quote!(#text),
            Piece::Field(field) => {
                let parameter = self.parameters.iter().find(|(name, _)| *name == field.root);
                match parameter {
                    Some((name, ParameterKind::Type)) => quote!(::std::any::type_name::<#name>()),
                    _ if field.root == "self" && self.is_async() => {
                        let members = &field.members;
                        quote!(__larder_self #(.#members)*)
                    }
                    _ => self.field(field),
                }
            }
        }
    }

    /// The call of the function as it was, with what this one was given.
    fn call_uncached(&self) -> TokenStream {
        let uncached = self.beside(&self.companion("uncached"), true);
        let own = self.receiver.iter().map(|_| quote!(self));
        let arguments = self.arguments.iter().map(|argument| {
            let ident = &argument.ident;
            quote!(#ident)
        });
        let given = own.chain(arguments);
        quote!(#uncached(#(#given),*))
    }

    /// The answer of an async function: from the cache, or from the function itself.
    fn answer_async(&self) -> TokenStream {
        let (shape, load) = (self.shape(), self.load_async());
        let uncached = self.call_uncached();
        let call = if self.returned.fails {
            let ty = &self.returned.ty;
            let way = quote_spanned! {at(ty.span())=> {
                #[allow(unused_imports)]
                use ::larder::__macros::{
                    CannotFail as _, FailsByBoth as _, FailsByClone as _, FailsByConversion as _,
                };
                (&&&::larder::__macros::Failure::<<#ty as ::larder::__macros::Fallible>::Error>(
                    ::core::marker::PhantomData,
                )).way()
            }};
            quote! {
                ::larder::__macros::try_call::<#shape, _, _, _, _, _, _>(
                    __larder_cache, __larder_key, #way, #load,
                )
            }
        } else {
            quote! {
                ::larder::__macros::call::<#shape, _, _, _, _>(__larder_cache, __larder_key, #load)
            }
        };
        quote! {
            let __larder_answer = #call.await;
            match __larder_answer {
                ::core::option::Option::Some(__larder_given) => __larder_given,
                ::core::option::Option::None => #uncached.await,
            }
        }
    }

    /// What a load of an async function takes along, and does.
    fn load_async(&self) -> TokenStream {
        let own = self.receiver.iter().map(|receiver| {
            let span = receiver.self_token.span;
            let by_ref = matches!(*receiver.ty, Type::Reference(_));
            let value = if by_ref { quote!(self) } else { quote!(&self) };
            let carry = quote_spanned!(at(span)=> (&::larder::__macros::Carry(#value)).carry());
            let given = if by_ref {
                quote!(&__larder_self)
            } else {
                quote!(__larder_self)
            };
            (quote!(let __larder_self = #carry;), given)
        });
        let arguments = self.arguments.iter().map(|argument| {
            let ident = &argument.ident;
            let value = if argument.is_borrowed() {
                quote!(#ident)
            } else {
                quote!(&#ident)
            };
            let carry = quote_spanned! {at(argument.ty.span())=>
                (&::larder::__macros::Carry(#value)).carry()
            };
            let given = if argument.is_borrowed() {
                quote!(&#ident)
            } else {
                quote!(#ident)
            };
            (quote!(let #ident = #carry;), given)
        });
        let (carried, given): (Vec<_>, Vec<_>) = own.chain(arguments).unzip();
        let uncached = self.beside(&self.companion("uncached"), true);
        let keeping = self.keeping_in_load();
        quote! {
            || {
                #[allow(unused_imports)]
                use ::larder::__macros::{CannotCarry as _, CarryByClone as _};
                #(#carried)*
                #keeping
                (__larder_keeping, async move { #uncached(#(#given),*).await })
            }
        }
    }

    /// `__larder_keeping`, with what patterns bind in reach of the tags.
    fn keeping_in_load(&self) -> TokenStream {
        let keeping = self.keeping();
        let patterns = self.arguments.iter().filter_map(|argument| {
            let (pattern, ident) = (argument.pattern.as_ref()?, &argument.ident);
            let in_tags = self.options.tags.iter().flat_map(|tag| tag.fields());
            let needed = in_tags
                .into_iter()
                .any(|field| argument.names.contains(&field.root));
            needed.then(|| quote!(let #pattern = &#ident;))
        });
        quote! {
            #[allow(unused_variables)]
            let __larder_keeping = {
                #(#patterns)*
                #keeping
            };
        }
    }

    /// The answer of a function that is not async.
    fn answer_now(&self) -> TokenStream {
        let (shape, keeping) = (self.shape(), self.keeping_in_load());
        let work = self.call_uncached();
        let call = |error: TokenStream, work: TokenStream| {
            quote! {
                ::larder::__macros::call_now::<#shape, _, _, #error>(
                    __larder_cache, &__larder_key, || { #keeping (__larder_keeping, #work) },
                )
            }
        };
        if self.returned.fails {
            return call(quote!(_), work);
        }
        let call = call(
            quote!(::core::convert::Infallible),
            quote!(::core::result::Result::Ok(#work)),
        );
        quote! {
            match #call {
                ::core::result::Result::Ok(__larder_given) => __larder_given,
                ::core::result::Result::Err(__larder_never) => match __larder_never {},
            }
        }
    }

    /// The function as it was.
    fn uncached(&self) -> TokenStream {
        let name = self.name();
        let doc = format!("[`{name}`](Self::{name}) without its cache: what it does on a miss.");
        let doc = self.linked(&doc);
        let head = self.head(&doc);
        let expected = self
            .function
            .attrs
            .iter()
            .filter(|attribute| is_expectation(attribute));
        let mut sig = self.function.sig.clone();
        sig.ident = self.companion("uncached");
        for input in &mut sig.inputs {
            if let FnArg::Typed(typed) = input
                && let Pat::Ident(name) = &*typed.pat
                && self.finds_cache(&name.ident)
            {
                // It is used, if not in the body.
                typed.attrs.push(parse_quote!(#[allow(unused_variables)]));
            }
        }
        let block = &self.function.block;
        quote!(#(#expected)* #head #sig #block)
    }

    /// A text with its links as they are written here.
    fn linked(&self, doc: &str) -> String {
        if self.associated {
            doc.to_owned()
        } else {
            doc.replace("(Self::", "(")
        }
    }

    fn invalidate(&self) -> TokenStream {
        let name = self.name();
        let (reach, how) = if self.is_async() {
            (
                "every tier and process",
                Work::Async(quote!(__larder_cache.invalidate(&__larder_key))),
            )
        } else {
            (
                "this process's memory",
                Work::Now(quote!(::larder::__macros::forget(
                    __larder_cache,
                    &__larder_key
                ))),
            )
        };
        let doc = format!(
            "Removes what [`{name}`](Self::{name}) keeps for these arguments from {reach}. No call \
             that began before can store its result afterwards."
        );
        self.companion_function("invalidate", &doc, true, None, how)
    }

    fn clear(&self) -> TokenStream {
        let name = self.name();
        let doc = format!(
            "Removes everything from the cache that [`{name}`](Self::{name}) keeps its results in, \
             whoever else uses it."
        );
        let how = if self.is_async() {
            Work::Async(quote!(__larder_cache.clear()))
        } else {
            Work::Now(quote!(__larder_cache.clear_in_memory()))
        };
        self.companion_function("clear", &doc, false, None, how)
    }

    fn info(&self) -> TokenStream {
        let name = self.name();
        let doc = format!(
            "What the cache did so far that [`{name}`](Self::{name}) keeps its results in."
        );
        let how = Work::Returns(quote!(::larder::CacheStats), quote!(__larder_cache.stats()));
        self.companion_function("info", &doc, false, None, how)
    }

    fn invalidate_tag(&self) -> TokenStream {
        if self.options.tags.is_empty() {
            return TokenStream::new();
        }
        let name = self.name();
        let doc = format!(
            "Invalidates a tag in the larder of the cache that [`{name}`](Self::{name}) keeps its \
             results in: every entry of that larder which carries it."
        );
        let how = if self.is_async() {
            Work::Async(quote!(::larder::__macros::invalidate_tag(
                __larder_cache,
                __larder_tag
            )))
        } else {
            Work::Now(quote!(::larder::__macros::forget_tag(
                __larder_cache,
                __larder_tag
            )))
        };
        let tag = quote!(__larder_tag: &::core::primitive::str);
        self.companion_function("invalidate_tag", &doc, false, Some(tag), how)
    }

    fn companion_function(
        &self,
        ending: &str,
        doc: &str,
        with_key: bool,
        more: Option<TokenStream>,
        work: Work,
    ) -> TokenStream {
        let (head, name) = (self.head(&self.linked(doc)), self.companion(ending));
        let generics = &self.function.sig.generics;
        let wheres = &generics.where_clause;
        let inputs = self.companion_inputs(with_key).into_iter().chain(more);
        let cache = self.find_cache();
        let key = with_key.then(|| self.make_key());
        let (asyncness, output, work) = match work {
            Work::Async(work) => (
                Some(quote!(async)),
                quote!(-> ::larder::Result<::larder::Receipt>),
                quote!(#work.await),
            ),
            Work::Now(work) => (None, quote!(), quote!(#work;)),
            Work::Returns(ty, work) => (None, quote!(-> #ty), work),
        };
        quote! {
            #head #asyncness fn #name #generics (#(#inputs),*) #output #wheres {
                #cache
                #key
                #work
            }
        }
    }

    /// The hidden function that holds the cache of a function that names none.
    fn own(&self) -> TokenStream {
        if self.options.cache.is_some() {
            return TokenStream::new();
        }
        let (hidden, attributes) = (self.hidden("own"), self.common_attributes());
        let name = cache_name(self.name());
        let version = self
            .options
            .version
            .as_ref()
            .map_or(1, |version| version.value);
        let max_entries = match &self.options.max_entries {
            Some(entries) => {
                let entries = entries.value;
                quote!(::core::option::Option::Some(#entries))
            }
            None => quote!(::core::option::Option::None),
        };
        quote! {
            #(#attributes)*
            #[doc(hidden)]
            #[allow(non_snake_case)]
            fn #hidden() -> &'static ::larder::__macros::Own {
                static OWN: ::larder::__macros::Own =
                    ::larder::__macros::Own::new(::larder::__macros::Plan {
                        name: #name,
                        version: #version,
                        max_entries: #max_entries,
                    });
                &OWN
            }
        }
    }
}

/// What a companion does.
enum Work {
    /// Something that is acknowledged.
    Async(TokenStream),
    /// Something that is done at once.
    Now(TokenStream),
    /// Something that says what it found, and of which type.
    Returns(TokenStream, TokenStream),
}

fn is_expectation(attribute: &Attribute) -> bool {
    attribute.path().is_ident("expect")
}

/// The place of something that the user wrote, for code that the user did not: the compiler points
/// there, and lints leave it alone.
fn at(span: Span) -> Span {
    span.resolved_at(Span::call_site())
}

fn span_option(span: Option<Duration>) -> TokenStream {
    match span {
        Some(span) => {
            let (secs, nanos) = (span.as_secs(), span.subsec_nanos());
            quote!(::core::option::Option::Some(::core::time::Duration::new(#secs, #nanos)))
        }
        None => quote!(::core::option::Option::None),
    }
}

/// A name that a cache can have.
fn cache_name(function: &Ident) -> String {
    let name = function.to_string();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let name: String = name
        .chars()
        .filter(|letter| plain(*letter))
        .take(LONGEST_NAME)
        .collect();
    if name.is_empty() {
        "calls".to_owned()
    } else {
        name
    }
}
