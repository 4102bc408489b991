"""The dashboard: orchestrations and agents' conversations in a browser, read over the scheduler's public client.

The pages are made with NiceGUI: it ships every asset that its pages load, changes an open page element by element
over one websocket, and brings Mermaid. Looked at as well: Streamlit (runs the whole script anew at each change), Dash
(a request for each update, no Mermaid), Panel (as able, but brings Bokeh and pandas), Reflex (needs Node.js to build).

scheduler.py reads and acts; conversation.py, history.py and approval.py say what was read, words.py how it is told;
overview.py, orchestration.py with review.py and actions.py, and session.py are what is seen, frame.py what all pages
share; guard.py keeps other web pages out.
"""
