defmodule Beamr.FromErlangTest do
  # The whole path from a module written in Erlang, by the names of Elixir's modules: plain terms
  # in and out. What Erlang's own names add is in erlang_test.exs.
  use ExUnit.Case, async: true

  @source ~S"""
  -module(beamr_from_erlang).
  -export([run/1, compile_error/0, link_error/1]).

  run(Source) ->
      {ok, Module} = 'Elixir.Beamr':compile(Source),
      [{<<"env">>, <<"add">>, {function, #{params := [i32, i32], results := [i32]}}}] =
          'Elixir.Beamr.Module':imports(Module),
      Imports = #{<<"env">> => #{<<"add">> => fun(_Wasm, A, B) -> A + B end}},
      {ok, Wasm} = 'Elixir.Beamr':instantiate(Module, [{imports, Imports}]),

      {ok, 65536} = 'Elixir.Beamr.IO':size(Wasm),
      ok = 'Elixir.Beamr.IO':write(Wasm, 16, [<<"he">>, $l | <<"lo">>]),
      {ok, <<"hello">>} = 'Elixir.Beamr.IO':read(Wasm, 16, 5),
      {ok, <<"hello">>} = 'Elixir.Beamr.IO':read_string(Wasm, 16),
      {ok, <<"hello">>} = 'Elixir.Beamr.IO':read_string(Wasm, 16, 8),
      {ok, Pointer} = 'Elixir.Beamr.IO':write_string(Wasm, "from Erlang"),
      <<"from Erlang">> = 'Elixir.Beamr.IO':'read_string!'(Wasm, Pointer),
      ok = 'Elixir.Beamr.IO':free(Wasm, Pointer),

      {ok, [42]} = 'Elixir.Beamr':call(Wasm, <<"add">>, [40, 2]),
      {ok, [infinity]} = 'Elixir.Beamr':call(Wasm, <<"div">>, [1, 0.0]),
      {ok, [{any, term}]} = 'Elixir.Beamr':call(Wasm, <<"id">>, [{any, term}]),
      {ok, [nil]} = 'Elixir.Beamr':call(Wasm, <<"id">>, [nil]),

      {error, #{'__struct__' := 'Elixir.Beamr.Trap', reason := unreachable,
                backtrace := [#{name := <<"trap">>} | _]}} =
          'Elixir.Beamr':call(Wasm, <<"trap">>, []),
      {error, #{'__struct__' := 'Elixir.Beamr.CallError', reason := timeout}} =
          'Elixir.Beamr':call(Wasm, <<"loop">>, [], [{timeout, 1}]),
      {error, #{'__struct__' := 'Elixir.Beamr.MemoryError', reason := out_of_bounds,
                offset := 65535, length := 2, size := 65536}} =
          'Elixir.Beamr.IO':read(Wasm, 65535, 2),
      {error, Unknown} = 'Elixir.Beamr':call(Wasm, <<"nope">>, []),
      <<"the module exports no function \"nope\"">> = 'Elixir.Exception':message(Unknown),
      refused = try 'Elixir.Beamr.IO':read(Wasm, -1, 1)
                catch error:function_clause -> refused end,
      refused = try 'Elixir.Beamr.IO':write(Wasm, 0, [foo])
                catch error:#{'__struct__' := 'Elixir.ArgumentError'} -> refused end,

      ok = 'Elixir.Beamr':close(Wasm),
      {error, #{reason := closed}} = 'Elixir.Beamr.IO':size(Wasm),
      done.

  compile_error() ->
      {error, #{reason := invalid_wat, line := 1, column := _}} =
          'Elixir.Beamr':compile(<<"(modul)">>),
      done.

  link_error(Source) ->
      {error, #{imports := [#{module := <<"env">>, name := <<"add">>, problem := missing}]}} =
          'Elixir.Beamr':instantiate(Source),
      done.
  """

  @guest """
  (module
    (import "env" "add" (func $add (param i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "malloc") (param i32) (result i32) (i32.const 1024))
    (func (export "free") (param i32))
    (func (export "add") (param i32 i32) (result i32)
      (call $add (local.get 0) (local.get 1)))
    (func (export "div") (param f64 f64) (result f64) (f64.div (local.get 0) (local.get 1)))
    (func (export "id") (param externref) (result externref) (local.get 0))
    (func (export "loop") (loop (br 0)))
    (func $trap (export "trap") unreachable))
  """

  setup_all do
    {:ok, tokens, _line} = @source |> String.to_charlist() |> :erl_scan.string()

    forms =
      tokens
      |> Enum.chunk_while([], &chunk/2, fn [] -> {:cont, []} end)
      |> Enum.map(fn form ->
        {:ok, form} = :erl_parse.parse_form(form)
        form
      end)

    {:ok, module, binary} = :compile.forms(forms)
    {:module, ^module} = :code.load_binary(module, ~c"beamr_from_erlang.erl", binary)
    {:ok, erlang: module}
  end

  # A form ends with its dot.
  defp chunk({:dot, _} = dot, form), do: {:cont, Enum.reverse([dot | form]), []}
  defp chunk(token, form), do: {:cont, [token | form]}

  test "compiling, instantiating, memory, calls, traps and closing", %{erlang: erlang} do
    assert erlang.run(@guest) == :done
  end

  test "source that does not compile", %{erlang: erlang} do
    assert erlang.compile_error() == :done
  end

  test "imports that are missing", %{erlang: erlang} do
    assert erlang.link_error(@guest) == :done
  end
end
